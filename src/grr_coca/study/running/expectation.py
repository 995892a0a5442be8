"""Estimates the remaining runs, core-hours and disk space of a study on this machine.

The pace is measured: the baseline is trained and evaluated for some seconds.
"""

import shutil
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import Subset
from grr_coca.evaluate.checkpoint_metrics import evaluate_checkpoint
from grr_coca.model.anatomy import flops_of_pairs, num_parameters
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.config import CoCaConfig
from grr_coca.study.plan import Arm, Plan, arm_named, points_of, scores_captions, stage_names
from grr_coca.study.running.agenda import Want
from grr_coca.study.running.stage import caption_lengths, step_flops
from grr_coca.study.stages import stage_recipe
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import new_checkpoint, training_batches, training_sources
from grr_coca.train.step import build_trainer, count_tokens

WARM_UP = 8
"""Steps that are not timed: images are read for the first time, and kernels are prepared for new shapes."""
SECONDS = 8.0
"""Duration of the timed steps."""
MIN_STEPS = 5
_MAX_STEPS = 10_000
_EVALUATED_PAIRS = 128

_BYTES_PER_PARAMETER = 12
"""Bytes of a checkpoint for each parameter: weights, and both moments of AdamW."""
_CHECKPOINTS_PER_JOB = 3
"""The pretrained model from which fine-tunings start, the newest checkpoint of the run, and the next one while it is
written."""
_BYTES_PER_ROW = 20_000


@dataclass(frozen=True)
class Pace:
    """How fast a model trains, reads and is evaluated, in seconds.

    `step`: a training step on images that were read before; `reading`: a pair that is read for the first time;
    `evaluation`: evaluating a pair.
    """

    step: float
    reading: float
    evaluation: float


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The remaining work of a study.

    - `wants`: number of missing trials and runs
    - `hours`: core-hours by arm
    - `paces`: of the baseline, by stage
    - `run_bytes`, `ledger_bytes`: disk space of the models in training, and of the ledger
    - `free`: free bytes on the disk of the runs
    """

    wants: Mapping[Want, int]
    hours: Mapping[str, float]
    paces: Mapping[str, Pace]
    run_bytes: int
    ledger_bytes: int
    free: int


def expect_study(plan: Plan, wants: Counter[Want], runs: Path, jobs: int, device: torch.device) -> Expectation:
    """Measure the pace of the baseline, and scale it to the other arms by their FLOPs.

    Args:
        plan: the study.
        wants: number of its missing trials and runs.
        runs: folder of the models in training.
        jobs: number of models that train at a time.
        device: the device on which they train.
    """
    torch.set_num_threads(1)  # as in a worker
    baseline = arm_named(plan, plan.baseline)
    first, *others = stage_names(plan)
    start = new_checkpoint(stage_recipe(plan, baseline, first, 0, {}), Ranks.here(device))
    paces = {first: _pace(plan, first, start, device)}
    if others:  # all fine-tunings are about as fast as the first
        paces |= dict.fromkeys(others, _pace(plan, others[0], start, device))
    hours: dict[str, float] = defaultdict(float)
    for (kind, arm, stage), count in wants.items():
        recipe = stage_recipe(plan, arm_named(plan, arm), stage, 0, {}, is_trial=kind == "trial")
        pace = _pace_of(plan, arm_named(plan, arm), stage, paces[stage], start)
        hours[arm] += count * _seconds(recipe, pace, kind == "run", scores_captions(plan)) / 3600
    has_choice = any(len(points_of(plan, arm, first)) > 1 for arm in plan.arms)
    kept = _models_kept(wants, first) if others and has_choice else 0
    largest = max(num_parameters(_config(plan, arm)) for arm in plan.arms)
    return Expectation(
        wants=wants,
        hours=hours,
        paces=paces,
        run_bytes=largest * _BYTES_PER_PARAMETER * (_CHECKPOINTS_PER_JOB * jobs + kept),
        ledger_bytes=wants.total() * _BYTES_PER_ROW,
        free=shutil.disk_usage(next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())).free,
    )


def measure_pace(recipe: Recipe, start: Checkpoint, device: torch.device, before_step: Callable[[], None]) -> Pace:
    """Measure the pace by training some steps and evaluating some pairs.

    Args:
        recipe: without `auto`.
        start: the initial model, which is trained in place.
        device: the device on which it trains.
        before_step: called before each step; it may raise an error to end the measurement.
    """
    reading, step = _training_seconds(recipe, start, device, before_step)
    before_step()
    return Pace(step, reading, _evaluation_seconds(recipe, start))


def _pace(plan: Plan, stage: str, start: Checkpoint, device: torch.device) -> Pace:
    """Pace of the baseline. One model serves all stages, since the pace does not depend on the weights."""
    return measure_pace(stage_recipe(plan, arm_named(plan, plan.baseline), stage, 0, {}), start, device, lambda: None)


def _pace_of(plan: Plan, arm: Arm, stage: str, measured: Pace, start: Checkpoint) -> Pace:
    """Pace of an arm: that of the baseline, scaled by FLOPs."""
    baseline = arm_named(plan, plan.baseline)
    recipe, known = (stage_recipe(plan, each, stage, 0, {}) for each in (arm, baseline))
    lengths = caption_lengths(start, open_source(known.data.val or known.data.train))
    config, known_config = _config(plan, arm), _config(plan, baseline)
    return Pace(
        step=measured.step * step_flops(recipe, config, lengths) / step_flops(known, known_config, lengths),
        reading=measured.reading,
        evaluation=measured.evaluation * flops_of_pairs(config, lengths) / flops_of_pairs(known_config, lengths),
    )


def _seconds(recipe: Recipe, pace: Pace, is_run: bool, captions: bool) -> float:
    """Seconds of a stage. Captioning a split takes about as long as computing its losses."""
    schedule, data = recipe.schedule, recipe.data
    read = min(len(open_source(data.train)), schedule.steps * data.batch_size)
    val = len(open_source(data.val or data.train)) * (1 + -(-schedule.steps // recipe.evaluation.interval))
    tests = sum(len(open_source(path)) for path in data.test.values()) if is_run else 0
    evaluated = val + tests * (2 if captions else 1)
    return schedule.steps * pace.step + read * pace.reading + evaluated * pace.evaluation


def _config(plan: Plan, arm: Arm) -> CoCaConfig:
    recipe = stage_recipe(plan, arm, stage_names(plan)[0], 0, {})
    assert recipe.model is not None, "the plan was checked"
    assert recipe.tokenizer is not None, "the plan was checked"
    return recipe.model.config(recipe.tokenizer.vocab_size)


def _models_kept(wants: Counter[Want], first: str) -> int:
    """Number of pretrained models of one arm that are kept until the best point of its grid is known."""
    return max((count for (_, _, stage), count in wants.items() if stage == first), default=0)


def _training_seconds(
    recipe: Recipe, start: Checkpoint, device: torch.device, before_step: Callable[[], None]
) -> tuple[float, float]:
    """Seconds of reading a pair for the first time, and of a step. The pairs of the warm-up are repeated."""
    ranks = Ranks.here(device)
    trainer = build_trainer(recipe, start, ranks)
    pairs, _ = training_sources(recipe)
    size = recipe.data.batch_size
    pairs = Subset(pairs, list(range(min(WARM_UP * size, len(pairs)))))
    endless = replace(recipe, schedule=replace(recipe.schedule, steps=_MAX_STEPS))
    readings: list[float] = []
    steps: list[float] = []
    for number, micro_batches in enumerate(_timed(training_batches(endless, start, pairs, ranks), readings)):
        before_step()
        began = time.perf_counter()
        trainer.step(micro_batches, count_tokens(micro_batches), number)
        if number >= WARM_UP:
            steps.append(readings[-1] + time.perf_counter() - began)
        if sum(steps) > SECONDS and len(steps) >= MIN_STEPS:
            break
    first = (statistics.fmean(readings[:WARM_UP]) - statistics.fmean(readings[WARM_UP:])) / size
    return max(0.0, first), statistics.fmean(steps)


def _timed(batches: Iterator[list[Batch]], seconds: list[float]) -> Iterator[list[Batch]]:
    """The batches. The time that each took to load is appended to `seconds`."""
    began = time.perf_counter()
    for batch in batches:
        seconds.append(time.perf_counter() - began)
        yield batch
        began = time.perf_counter()


def _evaluation_seconds(recipe: Recipe, start: Checkpoint) -> float:
    val = open_source(recipe.data.val or recipe.data.train)
    count = min(max(_EVALUATED_PAIRS, recipe.evaluation.batch_size), len(val))
    began = time.perf_counter()
    some = Subset(val, list(range(count)))
    evaluate_checkpoint(start, some, recipe.evaluation.batch_size, recipe.losses.weights)
    return (time.perf_counter() - began) / count
