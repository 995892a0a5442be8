"""Measure the speed of a model on this machine, by training and evaluating it for a few seconds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from grr_coca.common.ranks import Ranks
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import Subset
from grr_coca.evaluate.checkpoint_metrics import evaluate_checkpoint
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import training_batches, training_sources
from grr_coca.train.step import build_trainer, count_tokens

WARM_UP = 8
"""Number of steps that are not timed, because images are read for the first time and kernels are prepared for new
shapes."""
SECONDS = 8.0
"""Minimum total duration of the timed steps, in seconds."""
MIN_STEPS = 5
_MAX_STEPS = 100_000
_EVALUATED_PAIRS = 128


@dataclass(frozen=True)
class TrainingSpeed:
    """Durations of training, reading and evaluation, in seconds.

    Attributes:
        step: Seconds per training step, on images that have been read before.
        reading: Additional seconds per pair that is read for the first time.
        evaluation: Seconds per pair that is evaluated.
    """

    step: float
    reading: float
    evaluation: float


def measure_speed(
    recipe: Recipe, start: Checkpoint, device: torch.device, before_step: Callable[[], None] = lambda: None
) -> TrainingSpeed:
    """Measure the speed by training and evaluating for at least `SECONDS` seconds.

    Args:
        recipe: Recipe with every `auto` resolved.
        start: Initial model, which is trained in place.
        device: Device of the training.
        before_step: Function that is called before each step. It may raise an error to end the measurement.
    """
    ranks, size = Ranks.current(device), recipe.data.batch_size
    trainer = build_trainer(recipe, start, ranks)
    pairs, _ = training_sources(recipe)
    # The timed steps use the pairs of the warm-up again.
    pairs = Subset(pairs, list(range(min(WARM_UP * size, len(pairs)))))
    endless = replace(recipe, schedule=replace(recipe.schedule, steps=_MAX_STEPS))
    batches = training_batches(endless, start, pairs, ranks)
    readings: list[float] = []
    steps: list[float] = []
    while sum(steps) <= SECONDS or len(steps) < MIN_STEPS:
        before_step()
        began = time.perf_counter()
        micro_batches = next(batches)
        readings.append(time.perf_counter() - began)
        trainer.step(micro_batches, count_tokens(micro_batches), len(readings) - 1)
        if len(readings) > WARM_UP:
            steps.append(time.perf_counter() - began)
    reading = statistics.fmean(readings[:WARM_UP]) - statistics.fmean(readings[WARM_UP:])
    before_step()
    return TrainingSpeed(statistics.fmean(steps), max(0.0, reading / size), _evaluation_seconds(recipe, start))


def _evaluation_seconds(recipe: Recipe, start: Checkpoint) -> float:
    val = open_source(recipe.data.val or recipe.data.train)
    count = min(max(_EVALUATED_PAIRS, recipe.evaluation.batch_size), len(val))
    began = time.perf_counter()
    some = Subset(val, list(range(count)))
    evaluate_checkpoint(start, some, recipe.evaluation.batch_size, recipe.losses.weights)
    return (time.perf_counter() - began) / count
