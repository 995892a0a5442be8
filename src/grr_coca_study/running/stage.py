"""Run a stage of a study: train, measure, and return its row, with its cost in FLOPs and seconds."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from grr_coca.common.errors import DiskError, DivergedError
from grr_coca.common.files import read_json, write_bytes_atomic
from grr_coca.common.ranks import Ranks
from grr_coca.data.random_changes import num_kept
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.split import require_pairs
from grr_coca.model.anatomy import TRAINING_PASSES, count_parameters, flops_of_pairs, flops_per_pair
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.config import CoCaConfig
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.recipe import Recipe
from grr_coca.train.run_checkpoints import NoReadableCheckpointError, resume_point
from grr_coca.train.setup import new_checkpoint, readable_validation, training_sources
from grr_coca_study.plan import showcase_of
from grr_coca_study.rows import CurvePoint, Kind, LedgerRow, without_nan
from grr_coca_study.running.agenda import FINISHED, Task
from grr_coca_study.running.measured import Numbers, examples, measure_test, measure_validation, without_words
from grr_coca_study.running.provenance import provenance, write_start_hashes

log = logging.getLogger(__name__)

_MINUTES_BETWEEN_SAVES = 3.0
"""Maximum number of minutes of training that are lost if the process is killed."""
_CURVE_METRICS = ("contrastive_loss", "captioning_loss", "coca_loss", "R@1")

OnProgress = Callable[[int], None]
"""Callback that receives the number of finished steps."""


def run_stage(task: Task, device: torch.device, on_progress: OnProgress) -> LedgerRow:
    """Train a stage, or resume it, measure it, and mark its folder as finished.

    A diverged run, whose training was aborted or whose model has no finite loss on `val`, gets a row without metrics.

    Args:
        task: The stage to run.
        device: Device of the training.
        on_progress: Function that is called after each training step.

    Raises:
        UserError: If the data are invalid, or the disk is full (`DiskError`).
        Interruption: If a signal was received. The run is saved.
    """
    for source in _test_splits(task).values() if not task.is_trial else ():
        require_pairs(source, task.recipe.evaluation.batch_size)  # before hours of training
    stopwatch = _Stopwatch(task.folder)

    def after_step(done: int) -> None:
        stopwatch.tick()
        on_progress(done)

    try:
        row = _train_and_measure(task, device, after_step)
    finally:
        stopwatch.note()
    try:
        write_bytes_atomic(task.folder / FINISHED, b"")
    except OSError as error:
        raise DiskError(f"{task.folder}: cannot be written to ({error.strerror})") from error
    return replace(row, seconds=round(stopwatch.seconds, 1))


def _train_and_measure(task: Task, device: torch.device, on_progress: OnProgress) -> LedgerRow:
    try:
        trained = _train(task, device, on_progress)
    except DivergedError as error:
        log.warning("%s diverged: %s", task.title, error)
        return _unmeasured_row(task, "diverged", _start_model(task, device, None))
    row = _unmeasured_row(task, "run", trained)
    val = readable_validation(training_sources(task.recipe)[1], Ranks.current(trained.model.device))
    on_val, refitted = measure_validation(trained, val, task.recipe)
    if "coca_loss" not in on_val:
        log.warning("%s diverged: its loss on val is not finite", task.title)
        return replace(row, kind="diverged")
    row = replace(row, training_flops=run_flops(task.recipe, trained, val), metrics={"val": on_val})
    if task.is_trial:
        return row
    metrics, values = {"val": on_val}, {}
    for split, source in _test_splits(task).items():
        metrics[split], values[split] = measure_test(trained, source, task.recipe, refitted, task.scores_captions)
    showcase, num_captions = showcase_of(task.plan, task.stage)
    shown = task.recipe.data.test.get(showcase)
    captions = () if shown is None else examples(trained, open_source(shown), num_captions)
    return replace(row, metrics=metrics, values=values, captions=captions)


def _train(task: Task, device: torch.device, on_progress: OnProgress) -> Checkpoint:
    minutes = min(task.recipe.checkpoints.minutes, _MINUTES_BETWEEN_SAVES)
    # The row and all later stages use the model after the last step.
    checkpoints = replace(task.recipe.checkpoints, minutes=minutes, keep_last=1, keep_best=None)
    recipe = replace(task.recipe, checkpoints=checkpoints)
    try:
        point = resume_point(task.folder, recipe)
    except NoReadableCheckpointError:  # losing one run is better than blocking all others
        log.warning("%s: no checkpoint can be read; the run starts again", task.folder)
        point = None
    start = _start_model(task, device, point)
    if point is None:
        write_start_hashes(recipe, start, task.folder)
    return train(recipe, start, task.folder, Ranks.current(device), lambda done, _: on_progress(done), point)


def _start_model(task: Task, device: torch.device, point: Path | None) -> Checkpoint:
    start = point if point is not None or task.start is None else task.start.folder
    if start is not None:
        return from_pretrained(start, device)
    return new_checkpoint(task.recipe, Ranks.current(device))


def _test_splits(task: Task) -> dict[str, PairSource]:
    """Return the test splits and, for pretraining, also the showcase without the images whose captions contain a word
    in the plan's `without`.
    """
    splits = {name: open_source(path) for name, path in task.recipe.data.test.items()}
    plan = task.plan
    if plan.without and task.start is None and plan.showcase in splits:
        name = f"{plan.showcase} without {', '.join(plan.without)}"
        splits[name] = without_words(splits[plan.showcase], plan.without)
    return splits


def _unmeasured_row(task: Task, kind: Kind, trained: Checkpoint) -> LedgerRow:
    """Return the row of a run before its model has been measured."""
    return LedgerRow(
        kind=kind,
        arm=task.arm,
        seed=task.seed,
        stage=task.stage,
        recipe_digest=task.recipe_digest,
        data_digest=task.data_digest,
        start_data_digest=task.start_data_digest,
        settings=dict(task.settings),
        steps=task.recipe.schedule.steps,
        seconds=0.0,
        parameters=count_parameters(trained.model),
        image_encoder_parameters=count_parameters(trained.model.own_image_encoder),
        flops_per_pair=flops_per_pair(trained.config),
        curve=_curve(task.folder),
        metrics={},
        **provenance(task.recipe, task.folder),
    )


def _curve(folder: Path) -> tuple[CurvePoint, ...]:
    """Return one point per validation, with the mean of the training losses since the previous validation."""
    points, since = [], 0.0
    # A line without this loss covers only skipped steps.
    train_lines = [row for row in read_metrics(folder, "train") if "contrastive" in row]
    for line in read_metrics(folder, "val"):
        step = line["step"]
        lines = [row for row in train_lines if since < row["step"] <= step]
        names = ("contrastive", "captioning")
        train_means = {name: sum(row[name] for row in lines) / len(lines) for name in names if lines}
        val = {name: line["text_to_image/R@1" if name == "R@1" else name] for name in _CURVE_METRICS}
        points.append(CurvePoint(int(step), _round_values(train_means), _round_values(val)))
        since = step
    return tuple(points)


def _round_values(numbers: Numbers) -> Numbers:
    return {name: round(number, 5) for name, number in without_nan(numbers).items()}


# --- Cost, counted in a way that gives the same result on every machine

_MAX_CAPTIONS = 10_000
"""Approximate number of captions from which the lengths of all captions in a larger split are estimated."""


def run_flops(recipe: Recipe, trained: Checkpoint, val: PairSource) -> int:
    """Return the FLOPs of all training steps of a run.

    Only patches that patch dropout keeps are counted. Captions are assumed to be as long as those in the validation
    split. Frozen parts and activation checkpointing are ignored.
    """
    return recipe.schedule.steps * step_flops(recipe, trained.config, caption_lengths(trained, val))


def step_flops(recipe: Recipe, config: CoCaConfig, lengths: Int[Tensor, " N"]) -> int:
    """Return the FLOPs of one training step.

    Args:
        recipe: Recipe with the batch size and the fraction of dropped patches.
        config: Config of the model.
        lengths: Number of tokens in each of N captions. The captions of the step have the same distribution of
            lengths.
    """
    kept = torch.arange(num_kept(config.own_image_encoder.num_patches, recipe.data.patch_dropout))
    per_pair = flops_of_pairs(config, lengths, kept) / len(lengths)
    return round(TRAINING_PASSES * recipe.data.batch_size * per_pair)


def caption_lengths(checkpoint: Checkpoint, source: PairSource) -> Int[Tensor, " N"]:
    """Return the number of tokens in N captions of a split, including [BOS], [EOS] and [CLS].

    In a large split, only evenly spaced captions are counted.
    """
    context, encode = checkpoint.config.text_decoder.context_length, checkpoint.tokenizer.encode_row
    chosen = range(0, len(source), -(-len(source) // _MAX_CAPTIONS))
    return torch.tensor([len(encode(source.caption(i), context)) for i in chosen])


# --- Time

_SECONDS_FILE = "seconds.json"
_SECONDS_BETWEEN_NOTES = 60.0
"""Maximum number of seconds that are lost if the process is killed."""


class _Stopwatch:
    """Total time of a run over all its processes, in a file in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _SECONDS_FILE
        self._before = float(read_json(self._path)["seconds"]) if self._path.exists() else 0.0
        self._began = self._noted = time.monotonic()

    @property
    def seconds(self) -> float:
        """Total number of seconds of this process and all earlier ones."""
        return self._before + time.monotonic() - self._began

    def tick(self) -> None:
        """Write the time to the file, if it was last written at least a minute ago."""
        if time.monotonic() - self._noted > _SECONDS_BETWEEN_NOTES:
            self.note()

    def note(self) -> None:
        """Write the time to the file."""
        self._noted = time.monotonic()
        if self._path.parent.is_dir():
            with suppress(OSError):  # the checkpoint will report a full disk
                write_bytes_atomic(self._path, json.dumps({"seconds": self.seconds}).encode())
