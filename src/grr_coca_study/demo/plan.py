"""Reads the plan of a demo, and chooses its longest schedule that fits the time on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.common.ranks import Ranks
from grr_coca.data.sources.open import open_source
from grr_coca.model.build import build
from grr_coca.train.numerics import resolve_precision
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import new_checkpoint
from grr_coca_study.plan import DemoPlan, arm_named, read_plan, stage_names
from grr_coca_study.running.pace import Pace, measure_pace
from grr_coca_study.running.workers import raise_if_stopped, usable_device
from grr_coca_study.stages import check_recipes, stage_recipe


def load_demo(path: Path) -> DemoPlan:
    """Read the plan of a demo, and check its recipes and data.

    Raises:
        UserError: If the plan is missing or invalid, or names something that does not exist.
    """
    plan = read_plan(path, DemoPlan)
    has_grid = any(arm.grid or arm.finetune_grid for arm in plan.arms)
    if len(plan.arms) != 2 or len(plan.seeds) != 1 or has_grid:
        raise UserError(f"{path}: a demo has two arms, one seed and no grid; `grr-coca study run` runs any plan")
    if not plan.finetune:
        raise UserError(f"{path}: finetune: a demo has one or more; `grr-coca study run` runs any plan")
    if plan.endpoints.split != "test":
        raise UserError(f"{path}: endpoints: split: a demo's is 'test', not '{plan.endpoints.split}'")
    if any(steps < 1 for steps in plan.schedules) or list(plan.schedules) != sorted(set(plan.schedules)):
        raise UserError(f"{path}: schedules: must be numbers of steps, 1 or more, in ascending order")
    if plan.num_hits < 1:
        raise UserError(f"{path}: num_hits must be at least 1, got {plan.num_hits}")
    if not plan.queries:
        raise UserError(f"{path}: queries: must have one or more")
    check_recipes(plan, path)
    return plan


def arm_names(plan: DemoPlan) -> tuple[str, str]:
    """Return the names of the model and of its baseline."""
    (model,) = (arm.name for arm in plan.arms if arm.name != plan.baseline)
    return model, plan.baseline


def demo_recipes(plan: DemoPlan) -> dict[str, Recipe]:
    """Return the recipes of the first arm by stage, in order."""
    return {stage: stage_recipe(plan, plan.arms[0], stage, plan.seeds[0], {}) for stage in stage_names(plan)}


# --- In a worker process, where the arms run


def with_precisions(plan: DemoPlan) -> DemoPlan:
    """Replace `auto` in the plan by the faster precision, which is one for both arms."""
    pretrain = next(iter(demo_recipes(plan).values()))
    assert pretrain.model is not None, "the plan was checked"
    assert pretrain.tokenizer is not None, "the plan was checked"
    numerics = resolve_precision(pretrain, build(pretrain.model.config(pretrain.tokenizer.vocab_size)), usable_device())
    return replace(plan, precision=numerics.precision, muon_precision=numerics.muon_precision)


def arm_pace(plan: DemoPlan, name: str) -> Pace:
    """Return the pace of an arm in pretraining."""
    device = usable_device()
    recipe = stage_recipe(plan, arm_named(plan, name), stage_names(plan)[0], plan.seeds[0], {})
    return measure_pace(recipe, new_checkpoint(recipe, Ranks.here(device)), device, raise_if_stopped)


# --- Schedules

_OTHER_SECONDS = 30.0
"""Seconds for the start of the processes, captions, heat maps and report, measured on two cores without AVX-512."""
_RESERVE = 1.04
"""Factor for training that is slower than the pace that was measured for some seconds."""


@dataclass(frozen=True)
class Schedule:
    """Steps of pretraining, minutes of the whole demo, and the R@1 on the showcase that these steps reached, if it was
    measured."""

    steps: int
    minutes: float
    reached: float | None


def timed_schedules(plan: DemoPlan, paces: Sequence[Pace], seconds_spent: float = 0.0) -> list[Schedule]:
    """Return the schedules of a plan with the time that each takes, shortest first.

    Args:
        plan: Without `auto`.
        paces: Paces of the arms, measured at the same time; the slower one counts.
        seconds_spent: Seconds that the demo has taken so far.
    """
    step = max(pace.step for pace in paces)
    evaluation, reading = max(pace.evaluation for pace in paces), max(pace.reading for pace in paces)
    pretrain, *finetunes = demo_recipes(plan).values()
    others = sum(recipe.schedule.steps * recipe.data.batch_size for recipe in finetunes) / pretrain.data.batch_size
    read = evaluated = 0
    for recipe in (pretrain, *finetunes):
        read += min(len(open_source(recipe.data.train)), recipe.schedule.steps * recipe.data.batch_size)
        val, tests = (recipe.data.val or recipe.data.train), recipe.data.test.values()
        validations = -(-recipe.schedule.steps // recipe.evaluation.interval)
        evaluated += validations * len(open_source(val)) + sum(len(open_source(test)) for test in tests)
    fixed = seconds_spent + _OTHER_SECONDS + read * reading + evaluated * evaluation
    schedules = plan.schedules or {pretrain.schedule.steps: None}
    return [
        Schedule(steps, (fixed + _RESERVE * step * (steps + others)) / 60, reached)
        for steps, reached in schedules.items()
    ]


def choose(schedules: Sequence[Schedule], minutes: float) -> Schedule:
    """Return the longest schedule that ends within `minutes`.

    Raises:
        UserError: If even the shortest takes longer. The message has the time.
    """
    fitting = [schedule for schedule in schedules if schedule.minutes <= minutes]
    if not fitting:
        shortest = schedules[0]
        raise UserError(
            f"--minutes {minutes:g}: the shortest schedule, {shortest.steps:,} steps, takes about "
            f"{shortest.minutes:.1f} minutes on this machine; pass --minutes {int(shortest.minutes) + 1}"
        )
    return fitting[-1]
