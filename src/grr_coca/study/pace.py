"""How fast a preset trains and is evaluated on this machine, found by doing both for some seconds."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from grr_coca.checkpoint import Checkpoint
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.pairs import Subset
from grr_coca.ranks import Ranks
from grr_coca.study.plan import Plan, stages
from grr_coca.train.recipe import Recipe
from grr_coca.train.run.loop import build_trainer, evaluate
from grr_coca.train.run.setup import new_checkpoint, training_batches, training_sources
from grr_coca.train.step.trainer import count_tokens

WARM_UP = 6
"""Steps that are not timed: kernels are prepared for shapes that they have not seen."""
SECONDS = 8.0
FEWEST_STEPS = 5
EVALUATED_PAIRS = 128


@dataclass(frozen=True)
class Pace:
    """`step`: seconds of a step of pretraining, the reading of its batch included; `pair`: of evaluating one pair."""

    step: float
    pair: float


def measure_pace(plan: Plan, preset: str, device: torch.device, go_on: Callable[[], None]) -> Pace:
    """Train a preset for some steps, evaluate some pairs, and keep nothing.

    Args:
        plan: with its numerics decided.
        preset: the arm.
        device: where.
        go_on: called before each step; may raise to end the measurement.
    """
    recipe = next(iter(stages(plan).values()))
    assert recipe.model is not None, "load_plan has seen to that"
    recipe = replace(recipe, model=replace(recipe.model, preset=preset))
    start = new_checkpoint(recipe, Ranks.here(device))
    step = _seconds_per_step(recipe, start, device, go_on)
    go_on()
    return Pace(step, _seconds_per_pair(recipe, start))


def _seconds_per_step(recipe: Recipe, start: Checkpoint, device: torch.device, go_on: Callable[[], None]) -> float:
    ranks = Ranks.here(device)
    trainer = build_trainer(recipe, start, ranks)
    batches = training_batches(recipe, start, training_sources(recipe)[0], ranks)
    seconds: list[float] = []
    for step in itertools.count():
        go_on()
        began = time.perf_counter()
        micro_batches = next(batches)
        trainer.step(micro_batches, count_tokens(micro_batches), step)
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - began)
        is_last = step + 1 == recipe.schedule.steps
        if is_last or (sum(seconds) > SECONDS and len(seconds) >= FEWEST_STEPS):
            return statistics.fmean(seconds or [time.perf_counter() - began])
    raise AssertionError("the loop ends by itself")


def _seconds_per_pair(recipe: Recipe, start: Checkpoint) -> float:
    val = open_source(recipe.data.val or recipe.data.train)
    count = min(max(EVALUATED_PAIRS, recipe.evaluation.batch_size), len(val))
    began = time.perf_counter()
    evaluate(start, Subset(val, list(range(count))), recipe)
    return (time.perf_counter() - began) / count
