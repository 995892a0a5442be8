"""Training loop, from a recipe to a checkpoint. Pretraining and fine-tuning differ only in their start model."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from grr_coca.common.errors import DiskError, DivergedError, Interruption, UserError
from grr_coca.common.ranks import SIGNALS, Ranks, StopSignals
from grr_coca.data.batch import Batch, copy_ahead
from grr_coca.data.dataset import ReplacementLog
from grr_coca.data.sources.base import PairSource
from grr_coca.evaluate.caption_split import CaptionedSplit, caption_split
from grr_coca.evaluate.checkpoint_metrics import refit_scaling
from grr_coca.evaluate.split import (
    Embeddings,
    Scaling,
    aggregate,
    pair_results,
    require_pairs,
    scaling_of,
)
from grr_coca.model.build import build_without_weights
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.train.copied_run import copy_run
from grr_coca.train.features import standardize
from grr_coca.train.logs import LOG_INTERVAL, MetricLog, Progress, Throughput, device_use, draw_curves
from grr_coca.train.recipe import Recipe, ScheduleRecipe, save_recipe
from grr_coca.train.run_checkpoints import (
    CheckpointStore,
    Origin,
    RunConstants,
    read_data_state,
    restore,
    save,
    save_origin,
    unsharded_tensors,
    with_numerics_of,
)
from grr_coca.train.setup import (
    DataState,
    data_state,
    readable_validation,
    require_same_data,
    training_batches,
    training_sources,
    warn_of_equal_captions,
)
from grr_coca.train.step import Numerics, Trainer, build_trainer, count_tokens, resolve_precision


@dataclass(frozen=True)
class ValidationResult:
    """Result of one validation, which is the same on every rank.

    Attributes:
        scores: Scores, by their names in the log.
        scaling: Temperature, and bias if the loss is sigmoid, with which the losses were computed.
        captioned: Captions from which the caption scores were computed. None if the recipe requests no captions.
    """

    scores: dict[str, float]
    scaling: Scaling
    captioned: CaptionedSplit | None


class Validation:
    """Evaluation of a run's model on its validation split, always with the same pairs and images."""

    def __init__(self, recipe: Recipe, val: PairSource, trainer: Trainer) -> None:
        self._recipe = recipe
        self._val = val
        self._trainer = trainer
        self._ranks = trainer.model.ranks
        self._is_first_time = True

    def run(self, checkpoint: Checkpoint) -> ValidationResult:
        """Evaluate the trainer's model, with the running average of its weights if it has one.

        All ranks must call this.
        """
        batch_size = self._recipe.evaluation.batch_size
        with self._trainer.averaged():
            results = pair_results(
                checkpoint, self._val, batch_size, self._ranks, self._recipe.data.num_workers, warns=self._is_first_time
            )
            self._is_first_time = False
            scaling = self._scaling(results.embeddings)
            # Rank 0 decides for all ranks, because other processors may round differently and choose another best
            # checkpoint.
            evaluation = self._ranks.run_on_first(
                lambda: aggregate(results, scaling, batch_size, self._recipe.losses.weights)
            )
            scores = {**evaluation.flat(), "mean_recall": evaluation.mean_recall}
            captioned, caption_scores = self._caption(checkpoint)
        return ValidationResult(scores | caption_scores, scaling, captioned)

    def _scaling(self, embeddings: Embeddings) -> Scaling:
        """Return the temperature (and the bias of a sigmoid loss) that the model would have if training ended now."""
        learned = scaling_of(self._trainer.model.raw)
        if self._recipe.temperature == "learned":
            return learned
        return self._ranks.run_on_first(lambda: refit_scaling(embeddings, learned, self._recipe.evaluation.batch_size))

    def _caption(self, checkpoint: Checkpoint) -> tuple[CaptionedSplit | None, dict[str, float]]:
        """Caption a fixed set of validation images, and score the captions."""
        num_images = self._recipe.evaluation.num_captions
        if not num_images:
            return None, {}
        weights = unsharded_tensors(self._trainer.model.raw.state_dict().items(), self._ranks)

        def caption() -> tuple[CaptionedSplit, dict[str, float]]:
            # Only rank 0 generates captions, so it needs a model that is not sharded.
            model = build_without_weights(checkpoint.config).to(self._ranks.device)
            model.load_state_dict(weights)
            captioned = caption_split(replace(checkpoint, model=model), self._val, max_images=num_images)
            return captioned, captioned.scores().corpus()

        return self._ranks.run_on_first(caption)


log = logging.getLogger(__name__)

_SECONDS_BETWEEN_PLOTS = 30.0

OnStep = Callable[[int, dict[str, float]], None]
"""Callback that rank 0 calls with the number of finished steps and the newest metrics, whenever the log gets a line of
training metrics."""


def train(
    recipe: Recipe,
    start: Checkpoint,
    out: Path,
    ranks: Ranks,
    on_step: OnStep,
    resume_from: Path | None = None,
    origin: Origin | None = None,
    stop: Callable[[Progress], bool] = lambda _: False,
) -> Checkpoint:
    """Train from `start` to the last step of the recipe, and write recipe, log and checkpoints to `out`.

    All ranks must call this function.

    Args:
        recipe: Recipe of the run.
        start: Model to train, changed in place.
        out: The run folder.
        ranks: This process among the processes of the run.
        on_step: Function that is called to report progress.
        resume_from: Checkpoint of the same run, from which `start` must be loaded; see `resume_point`.
        origin: Checkpoint from which the `start` of a new run was loaded. It is recorded in `out`, unless it is None.
        stop: Function that is called before every step. It must return the same value on every rank. If the value is
            True, the run ends before its last step.

    Returns:
        The trained model. If the recipe has `ema`, its weights are the running average.

    Raises:
        UserError: If the ranks cannot share a batch evenly, the recipe does not match the model, the data or the disk
            fails, too many samples are bad, or the loss stays non-finite. The error is raised on every rank.
        Interruption: If a signal stopped the run. The run is saved.
    """
    recipe.require_even_shares(ranks.size)
    recipe = _resolve_precisions(recipe, start, ranks, resume_from)
    if resume_from is None:
        ranks.run_on_first(lambda: _open_folder(out, recipe, origin))
    if ranks.is_first:
        _warn_of_warmup(recipe.schedule)
    pairs, val = training_sources(recipe)
    if ranks.is_first:
        warn_of_equal_captions(pairs)
    data = ranks.run_on_first(lambda: _check_data(recipe, pairs, val, resume_from))
    val = readable_validation(val, ranks)
    require_pairs(val, recipe.evaluation.batch_size)
    if resume_from is None and recipe.features is not None:
        standardize(start, pairs, ranks)
    trainer = build_trainer(recipe, start, ranks)
    progress = Progress() if resume_from is None else restore(resume_from, trainer)
    start = replace(start, step=start.step - progress.step)
    with StopSignals() as signals, MetricLog(out if ranks.is_first else None, progress) as metric_log:
        run = Run(
            recipe=recipe,
            constants=RunConstants(Numerics(recipe.precision, recipe.optimizer.muon_precision), data),
            start=start,
            out=out,
            trainer=trainer,
            validation=Validation(recipe, val, trainer),
            progress=progress,
            metric_log=metric_log,
            on_step=on_step,
        )
        steps = training_batches(recipe, start, pairs, ranks, first_step=progress.step)
        for micro_batches in copy_ahead(steps, ranks.device):
            if stop(progress):
                break
            run.step(micro_batches, signals)
    if trainer.ema is not None:
        trainer.ema.apply()
    return run.checkpoint


class RankConsensus(NamedTuple):
    """Totals over the global batch, and common decisions of all ranks.

    Attributes:
        num_tokens: Number of tokens to predict.
        num_replaced: Number of replaced bad samples.
        save: Whether to save a checkpoint after the step, because the last checkpoint is too old.
        stop: The signal that stops the run after the step, or None.
    """

    num_tokens: int
    num_replaced: int
    save: bool
    stop: int | None


@dataclass(kw_only=True)
class Run:
    """Run in progress on one rank: each step, and the validation, log and checkpoint after the step."""

    recipe: Recipe
    constants: RunConstants
    start: Checkpoint
    out: Path
    trainer: Trainer
    validation: Validation
    progress: Progress
    metric_log: MetricLog
    on_step: OnStep

    def __post_init__(self) -> None:
        self.ranks = self.trainer.model.ranks
        self.store = CheckpointStore(self.out / "checkpoints", self.recipe.checkpoints.keep_last)
        self.replacements = ReplacementLog(self.recipe.health.max_bad_share, counts=self.progress.replaced)
        self.throughput = Throughput(self.recipe.data.batch_size)
        self.saved_at = self.plotted_at = time.monotonic()

    @property
    def checkpoint(self) -> Checkpoint:
        """The current model as a checkpoint, with its step."""
        return replace(self.start, step=self.start.step + self.progress.step)

    def step(self, micro_batches: Sequence[Batch], signals: StopSignals) -> None:
        """Run a training step, then validation, log and checkpoint if they are due.

        Raises:
            UserError: If too many samples are bad, too many steps in a row were skipped, or the log or a checkpoint
                cannot be written.
            Interruption: If a signal was received before this step, and this is not the last step. The run is saved.
        """
        agreement = self._agree(micro_batches, signals)
        self._count_replaced(micro_batches, agreement)
        metrics = self.trainer.step(micro_batches, agreement.num_tokens, self.progress.step)
        self._count_step(metrics, micro_batches)
        done, is_last = self.progress.step, self.progress.step == self.recipe.schedule.steps
        validate = is_last or done % self.recipe.evaluation.interval == 0
        if validate or done % LOG_INTERVAL == 0:
            self._log_window()
        is_best = validate and self._validate()
        interval = self.recipe.checkpoints.interval
        is_due = validate if interval is None else is_last or is_best or done % interval == 0
        if is_due or agreement.save or agreement.stop is not None:
            self._save()
        if agreement.stop is not None and not is_last:
            raise Interruption(agreement.stop, f"stopped after step {done} of {self.recipe.schedule.steps}, and saved")

    def _agree(self, micro_batches: Sequence[Batch], signals: StopSignals) -> RankConsensus:
        """Exchange the state of all ranks before a step, so that all ranks make the same decisions."""
        minutes = (time.monotonic() - self.saved_at) / 60
        # rank 0 decides, because clocks differ
        is_due = self.ranks.is_first and minutes >= self.recipe.checkpoints.minutes
        num_replaced = sum(len(batch.replaced) for batch in micro_batches)
        known = [count_tokens(micro_batches), num_replaced, int(is_due), *signals.counts]
        # This tensor is on the CPU, so that the exchange does not synchronize with devices.
        tokens, replaced, save_votes, *counts = self.ranks.sum(torch.tensor(known)).tolist()
        stop = next((number for number, count in zip(SIGNALS, counts, strict=True) if count), None)
        return RankConsensus(tokens, replaced, save_votes > 0, stop)

    def _count_replaced(self, micro_batches: Sequence[Batch], agreement: RankConsensus) -> None:
        mine = [replacement for batch in micro_batches for replacement in batch.replaced]
        everyone = self.ranks.gather_objects(mine) if agreement.num_replaced else []
        self.replacements.add(self.recipe.data.batch_size, [one for part in everyone for one in part])
        self.progress.replaced = dict(self.replacements.counts)

    def _count_step(self, metrics: dict[str, float], micro_batches: Sequence[Batch]) -> None:
        """Count the step. If it was skipped, or its loss was a spike, report this with the keys of its pairs.

        Raises:
            DivergedError: If too many steps in a row were skipped.
        """
        problem = self.progress.add(metrics)
        self.throughput.add()
        if problem is None:
            return
        mine = [key for batch in micro_batches for key in batch.keys]
        keys = [key for part in self.ranks.gather_objects(mine) for key in part]
        shown = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        self.ranks.run_on_first(partial(self.metric_log.event, self.progress.step, problem, keys=keys, **shown))
        if self.ranks.is_first:
            outcome = "the loss has a spike"
            if problem == "not finite":
                outcome = "skipped, because the loss or a gradient is not finite"
            log.warning(
                "step %d: %s; metrics.jsonl lists the keys of the pairs in this step", self.progress.step, outcome
            )
        if self.progress.skipped_in_a_row >= self.recipe.health.max_skipped:
            raise DivergedError(
                f"training diverged at step {self.progress.step}: loss or gradients were not finite for "
                f"{self.progress.skipped_in_a_row} steps in a row (health: max_skipped); "
                "lower optimizer: lr in the recipe, or lengthen the warm-up"
            )

    def _log_window(self) -> None:
        metrics, step = self.progress.take_window(), self.progress.step
        throughput = {"pairs_per_second": self.throughput.take()}
        use = device_use(self.ranks.device)

        def report() -> None:
            self.metric_log.write(step, "train", metrics)
            self.metric_log.show(step, "train", throughput)
            if use:
                self.metric_log.write(step, "device", use)
            self.on_step(step, {**metrics, **throughput})

        self.ranks.run_on_first(report)

    def _validate(self) -> bool:
        """Validate the model, and log the result. Return whether the model is the best so far, by the recipe's score.

        The result is False if the recipe names no score. At the last step, this sets a refitted temperature.
        """
        step, validated = self.progress.step, self.validation.run(self.checkpoint)
        if self.recipe.temperature == "refitted" and step == self.recipe.schedule.steps:
            self.trainer.set_scaling(validated.scaling)

        def report() -> None:
            if validated.captioned is not None:
                self.metric_log.captions(step, validated.captioned)
            self.metric_log.write(step, "val", validated.scores)

        self.ranks.run_on_first(report)
        self.throughput.restart()
        name = self.recipe.checkpoints.keep_best
        return name is not None and self.progress.record_if_best(name, validated.scores[name], self.checkpoint.step)

    def _save(self) -> None:
        self.progress.log_bytes = self.ranks.run_on_first(self.metric_log.make_durable)
        save(self.store, self.checkpoint, self.trainer, self.progress, self.constants)
        self.ranks.run_on_first(self._plot_if_due)
        if (url := self.recipe.checkpoints.copy_to) is not None:
            self.ranks.run_on_first(lambda: copy_run(self.out, url))
        self.saved_at = time.monotonic()
        self.throughput.restart()

    def _plot_if_due(self) -> None:
        """Draw the learning curves at the last step, and before it at most once in `_SECONDS_BETWEEN_PLOTS`."""
        now, best = time.monotonic(), self.progress.best_step
        if self.progress.step == self.recipe.schedule.steps or now - self.plotted_at > _SECONDS_BETWEEN_PLOTS:
            draw_curves(self.out, None if best is None else best - self.start.step)
            self.plotted_at = now


def _warn_of_warmup(schedule: ScheduleRecipe) -> None:
    if schedule.warmup_steps > schedule.steps:
        log.warning(
            "schedule: warmup_steps (%d) exceeds steps (%d), so the learning rate never reaches its peak; "
            "lower warmup_steps",
            schedule.warmup_steps,
            schedule.steps,
        )


def _resolve_precisions(recipe: Recipe, start: Checkpoint, ranks: Ranks, resume_from: Path | None) -> Recipe:
    """Replace each `auto` in a recipe by a precision: in a resumed run, by that with which the run began."""
    if resume_from is not None:
        return with_numerics_of(recipe, resume_from)
    return ranks.run_on_first(lambda: resolve_precision(recipe, start.model, ranks.device)).resolve_autos(recipe)


def _check_data(recipe: Recipe, pairs: PairSource, val: PairSource, resume_from: Path | None) -> DataState:
    """Return the fingerprint of the data.

    Raises:
        UserError: If the data of a resumed run have changed, or the teacher cannot be used.
    """
    now = data_state(recipe, pairs, val)
    if resume_from is not None and (then := read_data_state(resume_from)) is not None:
        require_same_data(then, now, recipe, resume_from)
    return now


def _open_folder(out: Path, recipe: Recipe, origin: Origin | None) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, out / "recipe.yaml")
        if origin is not None:
            save_origin(origin, out)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{out}: expected a run folder, found a file; pass another --out") from error
    except OSError as error:
        raise DiskError(f"{out}: the run folder cannot be written to ({error.strerror})") from error
