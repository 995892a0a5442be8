"""Runs one stage: trains, measures, and makes its row.

The seconds that a run has taken, over all processes that worked on it.

Where a row comes from: the code, and the machine.

What a run of training costs, counted and not timed: so it is the same on every machine.
"""

import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import Int
from torch import Tensor

from grr_coca.checkpoint import Checkpoint, from_pretrained
from grr_coca.checkpoint_files import read_json
from grr_coca.config import CoCaConfig
from grr_coca.data.augment import num_kept
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.errors import DiskError, DivergedError
from grr_coca.evaluate.checkpoint import require_pairs
from grr_coca.files import write_whole
from grr_coca.ranks import Ranks
from grr_coca.study.anatomy import count_parameters, flops_of_pairs, flops_per_pair
from grr_coca.study.forecast import TRAINING_PASSES
from grr_coca.study.ledger import CaptionedExample, CurvePoint, Kind, LedgerRow, finite
from grr_coca.study.running.agenda import FINISHED, Task
from grr_coca.study.running.beginning import note_beginning, noted_beginning
from grr_coca.study.running.measured import (
    Numbers,
    Values,
    examples,
    measure_test,
    measure_validation,
    without_words,
)
from grr_coca.study.variants import change_of
from grr_coca.train.checkpoints import NoneReadableError, resume_point
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import new_checkpoint, sound_validation, training_sources

SECONDS_FILE = "seconds.json"
SECONDS_BETWEEN_NOTES = 60.0
"""What a kill may leave uncounted."""


class Stopwatch:
    """Within this context time counts. It is noted in the run's folder now and then, and at the end."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SECONDS_FILE
        self._before = float(read_json(self._path)["seconds"]) if self._path.exists() else 0.0
        self._began = self._noted = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of this process and all before it."""
        return self._before + time.monotonic() - self._began

    def tick(self) -> None:
        """To be called often."""
        if time.monotonic() - self._noted > SECONDS_BETWEEN_NOTES:
            self._note()

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._note()

    def _note(self) -> None:
        self._noted = time.monotonic()
        if self._path.parent.is_dir():
            with suppress(OSError):  # a full disk is reported by what matters more
                write_whole(self._path, json.dumps({"seconds": self.seconds}).encode())


PACKAGE = Path(__file__).parents[2]


@lru_cache(maxsize=1)
def code_commit() -> str:
    """The commit of the code, with a `+` if files of the package were changed since; its version outside of git.

    A package that is installed somewhere in a repository of the user's, as in its `.venv`, is outside.
    """
    commit = _git("ls-files", "--error-unmatch", "__init__.py") and _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return f"version {version('grr-coca')}"
    return commit + ("+" if _git("status", "--porcelain", "--", ".") else "")


@lru_cache(maxsize=1)
def machine_name() -> str:
    """Processor or GPU, what instructions it has, and torch's version; no name by which a machine could be found."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return f"{device}, torch {torch.__version__}"


def precision_name(recipe: Recipe) -> str:
    """Of forward and backward passes, and of Muon's products where that is another one."""
    muon = recipe.optimizer.muon_precision
    if recipe.optimizer.name != "muon" or muon == recipe.precision:
        return recipe.precision
    return f"{recipe.precision}, Muon in {muon}"


def _git(*arguments: str) -> str:
    """What git says of the package's folder; nothing where that is not under git, or git is not there."""
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


MOST_CAPTIONS = 10_000
"""So many say how long captions are; a plan without a validation split looks at the training pairs, which may be
millions."""


def run_flops(recipe: Recipe, trained: Checkpoint, val: PairSource) -> int:
    """FLOPs of all steps of a run, over the patches that patch dropout keeps, and captions as long as the validation
    split's. Nothing is taken off for frozen parts, or added for what is computed again to save memory."""
    return recipe.schedule.steps * step_flops(recipe, trained.config, caption_lengths(trained, val))


def step_flops(recipe: Recipe, config: CoCaConfig, lengths: Int[Tensor, " N"]) -> int:
    """FLOPs of one step of a run.

    Args:
        recipe: for the size of the batch and the share of patches that are dropped.
        config: the model.
        lengths: tokens of N captions, like which those of the step are.
    """
    kept = torch.arange(num_kept(config.image_encoder.num_patches, recipe.data.patch_dropout))
    per_pair = flops_of_pairs(config, lengths, kept) / len(lengths)
    return round(TRAINING_PASSES * recipe.data.batch_size * per_pair)


def caption_lengths(checkpoint: Checkpoint, source: PairSource) -> Int[Tensor, " N"]:
    """Tokens of each of a split's captions, [BOS], [EOS] and [CLS] included: of all of them, or of N that lie evenly in
    a large split."""
    context, encode = checkpoint.config.text_decoder.context_length, checkpoint.tokenizer.encode_row
    chosen = range(0, len(source), -(-len(source) // MOST_CAPTIONS))
    return torch.tensor([len(encode(source.caption(i), context)) for i in chosen])


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
