"""The longest schedule of a plan that fits a time on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from grr_coca.data.sources.open import open_source
from grr_coca.errors import UserError
from grr_coca.study.demo.plan import demo_recipes
from grr_coca.study.plan.folder import DemoPlan
from grr_coca.study.running.pace import Pace

SECONDS_BESIDES = 30.0
"""Start of the processes, captions, heat maps, report: measured on two cores without AVX-512."""
RESERVE = 1.04
"""A pace that is measured for seconds is not kept for minutes to the per cent."""


@dataclass(frozen=True)
class Schedule:
    """So many steps of pretraining, the minutes that the whole comparison then takes, and the share of texts that were
    found to be answered by the right image of the showcase (R@1), where that was measured."""

    steps: int
    minutes: float
    reached: float | None


def timed_schedules(plan: DemoPlan, paces: Sequence[Pace], seconds_spent: float = 0.0) -> list[Schedule]:
    """Every schedule of the plan with its time, shortest first.

    Args:
        plan: with its precisions decided.
        paces: of the arms, measured side by side; the slower one counts.
        seconds_spent: what the demo took before, the measurement with it.
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
    besides = seconds_spent + SECONDS_BESIDES + read * reading + evaluated * evaluation
    schedules = plan.schedules or {pretrain.schedule.steps: None}
    return [
        Schedule(steps, (besides + RESERVE * step * (steps + others)) / 60, reached)
        for steps, reached in schedules.items()
    ]


def choose(schedules: Sequence[Schedule], minutes: float) -> Schedule:
    """The longest schedule that ends within so many minutes.

    Raises:
        UserError: not even the shortest does; says what would.
    """
    fitting = [schedule for schedule in schedules if schedule.minutes <= minutes]
    if not fitting:
        shortest = schedules[0]
        raise UserError(
            f"--minutes {minutes:g}: the shortest schedule, {shortest.steps:,} steps, takes about "
            f"{shortest.minutes:.1f} minutes on this machine; give --minutes {int(shortest.minutes) + 1}"
        )
    return fitting[-1]
