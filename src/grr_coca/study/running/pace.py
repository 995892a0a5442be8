"""How fast a model trains and is evaluated on this machine, found by doing both for some seconds."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from grr_coca.batch import Batch
from grr_coca.checkpoint import Checkpoint
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import Subset
from grr_coca.evaluate.checkpoint import evaluate_checkpoint
from grr_coca.ranks import Ranks
from grr_coca.train.recipe import Recipe
from grr_coca.train.run.setup import training_batches, training_sources
from grr_coca.train.step.trainer import build_trainer, count_tokens

WARM_UP = 8
"""Steps that are not timed: images are read and decoded, and kernels prepared for shapes that they have not seen."""
SECONDS, MOST_STEPS = 8.0, 10_000
FEWEST_STEPS = 5
EVALUATED_PAIRS = 128


@dataclass(frozen=True)
class Pace:
    """Seconds that things take: `step`, a step of pretraining on images that were read before; `reading`, reading a
    pair for the first time; `evaluation`, evaluating a pair."""

    step: float
    reading: float
    evaluation: float


def measure_pace(recipe: Recipe, start: Checkpoint, device: torch.device, go_on: Callable[[], None]) -> Pace:
    """Train for some steps, evaluate some pairs, and keep nothing.

    Args:
        recipe: the run, without `auto`.
        start: the model that it begins with.
        device: where.
        go_on: called before each step; may raise to end the measurement.
    """
    reading, step = _training_seconds(recipe, start, device, go_on)
    go_on()
    return Pace(step, reading, _evaluation_seconds(recipe, start))


def _training_seconds(
    recipe: Recipe, start: Checkpoint, device: torch.device, go_on: Callable[[], None]
) -> tuple[float, float]:
    """Of reading a pair for the first time, and of a step. The pairs of the warm-up come again and again."""
    ranks = Ranks.here(device)
    trainer = build_trainer(recipe, start, ranks)
    pairs, _ = training_sources(recipe)
    size = recipe.data.batch_size
    pairs = Subset(pairs, list(range(min(WARM_UP * size, len(pairs)))))
    endless = replace(recipe, schedule=replace(recipe.schedule, steps=MOST_STEPS))
    readings: list[float] = []
    steps: list[float] = []
    for number, micro_batches in enumerate(_timed(training_batches(endless, start, pairs, ranks), readings)):
        go_on()
        began = time.perf_counter()
        trainer.step(micro_batches, count_tokens(micro_batches), number)
        if number >= WARM_UP:
            steps.append(readings[-1] + time.perf_counter() - began)
        if sum(steps) > SECONDS and len(steps) >= FEWEST_STEPS:
            break
    first = (statistics.fmean(readings[:WARM_UP]) - statistics.fmean(readings[WARM_UP:])) / size
    return max(0.0, first), statistics.fmean(steps)


def _timed(batches: Iterator[list[Batch]], seconds: list[float]) -> Iterator[list[Batch]]:
    """The batches; how long each took to come goes into `seconds`."""
    began = time.perf_counter()
    for batch in batches:
        seconds.append(time.perf_counter() - began)
        yield batch
        began = time.perf_counter()


def _evaluation_seconds(recipe: Recipe, start: Checkpoint) -> float:
    val = open_source(recipe.data.val or recipe.data.train)
    count = min(max(EVALUATED_PAIRS, recipe.evaluation.batch_size), len(val))
    began = time.perf_counter()
    some = Subset(val, list(range(count)))
    evaluate_checkpoint(start, some, recipe.evaluation.batch_size, recipe.losses.weights)
    return (time.perf_counter() - began) / count
