"""Runs one stage: trains, measures, and makes its row."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from grr_coca.checkpoint import Checkpoint, from_pretrained
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.pairs import PairSource
from grr_coca.errors import DiskError, DivergedError
from grr_coca.evaluate.checkpoint import require_pairs
from grr_coca.files import write_whole
from grr_coca.ranks import Ranks
from grr_coca.study.anatomy import count_parameters, flops_per_pair
from grr_coca.study.ledger import CaptionedExample, CurvePoint, Kind, LedgerRow, finite
from grr_coca.study.running.beginning import note_beginning, noted_beginning
from grr_coca.study.running.measured import (
    Numbers,
    Values,
    examples,
    measure_test,
    measure_validation,
    without_words,
)
from grr_coca.study.running.provenance import code_commit, machine_name, precision_name
from grr_coca.study.running.stopwatch import Stopwatch
from grr_coca.study.running.task import FINISHED, Task
from grr_coca.study.running.training_cost import run_flops
from grr_coca.study.variants.build import change_of
from grr_coca.train.run.logs import read_metrics
from grr_coca.train.run.loop import train
from grr_coca.train.run.setup import new_checkpoint, sound_validation, training_sources
from grr_coca.train.survival.resume import NoneReadableError, resume_point

log = logging.getLogger(__name__)

MINUTES_BETWEEN_SAVES = 3.0
"""What a kill may cost."""
CURVE_METRICS = ("contrastive_loss", "captioning_loss", "coca_loss", "R@1")

OnProgress = Callable[[int], None]
"""Called with the steps done."""


def run_stage(task: Task, device: torch.device, on_progress: OnProgress) -> LedgerRow:
    """Train, or go on with a run that was stopped, and measure. That it diverged is a result as well: its row has no
    metrics.

    Raises:
        UserError: the data or the disk is at fault.
        Stopped: a signal asked for it; the run is saved.
    """
    _require_pairs_of_tests(task)
    kind: Kind = task.kind
    with Stopwatch(task.folder) as watch:

        def tell(done: int) -> None:
            watch.tick()
            on_progress(done)

        try:
            trained = _trained(task, device, tell)
        except DivergedError as error:
            log.warning("%s diverged: %s", task.name, error)
            kind = "diverged" if task.kind == "run" else task.kind
            trained, found = _start(task, device, None), Findings()
        else:
            found = _findings(task, trained)
    _mark_finished(task.folder)
    return _row(task, kind, trained, found, watch.seconds)


def _require_pairs_of_tests(task: Task) -> None:
    """Find out before hours of training what would fail after them."""
    for source in _test_splits(task).values() if task.kind != "trial" else ():
        require_pairs(source, task.recipe.evaluation.batch_size)


def _mark_finished(folder: Path) -> None:
    try:
        write_whole(folder / FINISHED, b"")
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written to ({error.strerror})") from error


def _trained(task: Task, device: torch.device, on_progress: OnProgress) -> Checkpoint:
    minutes = min(task.recipe.checkpoints.minutes, MINUTES_BETWEEN_SAVES)
    recipe = replace(task.recipe, checkpoints=replace(task.recipe.checkpoints, minutes=minutes, keep_last=1))
    try:
        point = resume_point(task.folder, recipe)
    except NoneReadableError:  # it costs one run, and all others would wait for somebody to look at it
        log.warning("%s: no checkpoint can be read; this run begins anew", task.folder)
        point = None
    start = _start(task, device, point)
    if point is None:
        note_beginning(recipe, start, task.folder)
    return train(recipe, start, task.folder, Ranks.here(device), lambda done, _: on_progress(done), point)


def _start(task: Task, device: torch.device, point: Path | None) -> Checkpoint:
    change = change_of(task.variant, task.seed)
    if point is not None or task.start is not None:
        return from_pretrained(point or task.start or task.folder, device, change)
    start = new_checkpoint(task.recipe, Ranks.here(device))
    if change is not None:
        change(start.model, start.config)
    return start


@dataclass
class Findings:
    """What is measured of a trained model: metrics of all splits, values of the test splits, some captions, and what
    the training cost."""

    metrics: dict[str, Numbers] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    captions: tuple[CaptionedExample, ...] = ()
    training_flops: int | None = None


def _findings(task: Task, trained: Checkpoint) -> Findings:
    """A trial is measured on `val` alone."""
    val = sound_validation(training_sources(task.recipe)[1], Ranks.here(trained.model.device))
    on_val, refitted = measure_validation(trained, val, task.recipe)
    found = Findings({"val": on_val}, training_flops=run_flops(task.recipe, trained, val))
    if task.kind == "trial":
        return found
    for split, source in _test_splits(task).items():
        found.metrics[split], found.values[split] = measure_test(
            trained, source, task.recipe, refitted, task.scores_captions
        )
    shown = task.recipe.data.test.get(task.showcase)
    if shown is not None:
        found.captions = examples(trained, open_source(shown), task.num_captions)
    return found


def _test_splits(task: Task) -> dict[str, PairSource]:
    splits = {name: open_source(path) for name, path in task.recipe.data.test.items()}
    if task.without and task.showcase in splits:
        name = f"{task.showcase} without {', '.join(task.without)}"
        splits[name] = without_words(splits[task.showcase], task.without)
    return splits


def _row(task: Task, kind: Kind, trained: Checkpoint, found: Findings, seconds: float) -> LedgerRow:
    recipe, beginning = task.recipe, noted_beginning(task.folder)
    return LedgerRow(
        kind=kind,
        arm=task.arm,
        seed=task.seed,
        stage=task.stage,
        recipe_digest=task.recipe_digest,
        data_digest=task.data_digest,
        start_data_digest=task.start_data_digest,
        commit=code_commit(),
        machine=machine_name(),
        precision=precision_name(recipe),
        settings=task.settings,
        steps=recipe.schedule.steps,
        seconds=round(seconds, 1),
        parameters=count_parameters(trained.model),
        image_encoder_parameters=count_parameters(trained.model.image_encoder),
        flops_per_pair=flops_per_pair(trained.config),
        training_flops=found.training_flops,
        initial_weights=beginning.initial_weights,
        data_order=beginning.data_order,
        curve=_curve(task.folder),
        metrics=found.metrics,
        values=found.values,
        captions=found.captions,
    )


def _curve(folder: Path) -> tuple[CurvePoint, ...]:
    """A point for each validation, with the mean of the training losses since the one before."""
    points, since = [], 0.0
    train_lines = [row for row in read_metrics(folder, "train") if "contrastive" in row]  # else all steps were skipped
    for line in read_metrics(folder, "val"):
        step = line["step"]
        lines = [row for row in train_lines if since < row["step"] <= step]
        names = ("contrastive", "captioning")
        train_means = {name: sum(row[name] for row in lines) / len(lines) for name in names if lines}
        val = {name: line["text_to_image/R@1" if name == "R@1" else name] for name in CURVE_METRICS}
        points.append(CurvePoint(int(step), _short(train_means), _short(val)))
        since = step
    return tuple(points)


def _short(numbers: Numbers) -> Numbers:
    return {name: round(number, 5) for name, number in finite(numbers).items()}
