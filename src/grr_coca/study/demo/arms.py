"""The arms of a demo side by side, a process and a core each."""

from collections.abc import Callable
from pathlib import Path

from grr_coca.errors import UserError
from grr_coca.ranks import Ranks
from grr_coca.study.demo.comparison import demo_place
from grr_coca.study.demo.exhibits import make_exhibits
from grr_coca.study.demo.outcome import ArmResult, arm_results
from grr_coca.study.demo.plan import arm_names, demo_recipes, with_precisions
from grr_coca.study.ledger import Ledger, read_ledger
from grr_coca.study.plan.folder import DemoPlan
from grr_coca.study.plan.plan import arm_named, stage_names
from grr_coca.study.plan.stages import stage_recipe
from grr_coca.study.running.agenda import Agenda, StudyPart
from grr_coca.study.running.pace import Pace, measure_pace
from grr_coca.study.running.run import Study, Watch, taken_ledger
from grr_coca.study.running.task import Task
from grr_coca.study.running.workers import Workers, go_on, usable_device
from grr_coca.train.run.setup import new_checkpoint

Show = Callable[[str, int, str], None]
"""Called with the arm, its steps done over all stages, and the name of the stage."""


def decide_precisions(plan: DemoPlan, workers: Workers) -> DemoPlan:
    """The plan with `auto` decided, measured on one core, as an arm has it."""
    return workers.all([workers.submit(_precisions, plan)])[0]


def arm_paces(plan: DemoPlan, workers: Workers) -> list[Pace]:
    """How fast both arms train, measured side by side, as they will run."""
    return workers.all([workers.submit(_pace, plan, name) for name in arm_names(plan)])


def run_demo(plan: DemoPlan, out: Path, workers: Workers, show: Show) -> tuple[ArmResult, ArmResult]:
    """Train and measure both arms, or go on with them; their runs lie in `out/ARM`.

    Raises:
        UserError: an arm failed, and the other is stopped; or one diverged, so that there is nothing to compare.
    """
    place, names = demo_place(out), arm_names(plan)
    part = StudyPart(names)
    with taken_ledger(out, part) as ledger:
        Study(plan, place, part, ledger).run(workers, _ShownByArm(plan, show))
    ended = read_ledger(out)
    _require_no_divergence(ended)
    pretraining = stage_names(plan)[0]
    showcase = demo_recipes(plan)[pretraining].data.test[plan.showcase]
    runs = [place.folder_of(name, plan.seeds[0], pretraining, "") for name in names]
    futures = [workers.submit(make_exhibits, run, showcase, plan.queries, plan.num_hits) for run in runs]
    return arm_results(plan, ended.rows, workers.all(futures))


def _require_no_divergence(ended: Ledger) -> None:
    if ended.diverged:
        names = ", ".join(f"{row.arm} in {row.stage}" for row in ended.diverged)
        raise UserError(
            f"{names}: the loss is not a number any more, so there is nothing to compare; --fresh begins anew"
        )


class _ShownByArm(Watch):
    """Adds up the steps of an arm over its stages."""

    def __init__(self, plan: DemoPlan, show: Show) -> None:
        self._show = show
        self._steps = {stage: recipe.schedule.steps for stage, recipe in demo_recipes(plan).items()}
        self._done: dict[tuple[str, str], int] = {}

    def begins(self, agenda: Agenda) -> None:
        """Some stages may have ended."""
        lacking = agenda.lacking()
        for arm in {arm for _, arm, _ in lacking}:
            ended = [stage for stage in self._steps if not lacking["run", arm, stage]]
            self._done |= {(arm, stage): self._steps[stage] for stage in ended}

    def step(self, task: Task, done: int) -> None:
        """Steps of a task are done."""
        self._done[task.arm, task.stage] = done
        self._show(task.arm, sum(steps for (arm, _), steps in self._done.items() if arm == task.arm), task.stage)


def _precisions(plan: DemoPlan) -> DemoPlan:
    return with_precisions(plan, usable_device())


def _pace(plan: DemoPlan, name: str) -> Pace:
    device = usable_device()
    recipe = stage_recipe(plan, arm_named(plan, name), stage_names(plan)[0], plan.seeds[0], {})
    return measure_pace(recipe, new_checkpoint(recipe, Ranks.here(device)), device, go_on)
