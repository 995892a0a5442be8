"""A study as the command line runs it: with the time that is left."""

import sys
from collections.abc import Mapping

from grr_coca.cli.output.progress import JobProgress, bars
from grr_coca.errors import Stopped
from grr_coca.study.ledger import LedgerRow
from grr_coca.study.plan.plan import Plan, arm_named
from grr_coca.study.plan.stages import stage_recipe
from grr_coca.study.running.agenda import Agenda, StudyPart
from grr_coca.study.running.run import Place, Watch, run_study
from grr_coca.study.running.task import Task

NAME = "study"
Weights = Mapping[tuple[str, str], int]
"""Pairs that a stage of an arm trains on, over all its steps: what time is told by."""


def run_with_progress(plan: Plan, place: Place, part: StudyPart, num_jobs: int) -> None:
    """Run a study with a bar, and a line for each row."""
    weights = pairs_by_stage(plan)
    agenda = Agenda(plan, part, place.folder_of, ())
    total = sum(count * weights[key] for key, count in agenda.lacking().items())
    with bars({NAME: max(1, total)}) as shown:
        try:
            run_study(plan, place, part, num_jobs, _Shown(shown, weights, total))
        except (KeyboardInterrupt, Stopped):
            print("stopping: every run saves first", file=sys.stderr)
            raise


class _Shown(Watch):
    """Shows the work that is done of all that the study has."""

    def __init__(self, shown: JobProgress, weights: Weights, total: int) -> None:
        self._shown = shown
        self._weights = weights
        self._total = total
        self._done = 0
        self._running: dict[str, int] = {}

    def begins(self, agenda: Agenda) -> None:
        """Some of it may be there already."""
        lacking = agenda.lacking()
        self._done = self._total - sum(count * self._weights[key] for key, count in lacking.items())
        told = ", ".join(f"{arm} {stage} {count}" for (arm, stage), count in lacking.items()) or "nothing"
        print(f"to do: {told}", file=sys.stderr)

    def step(self, task: Task, done: int) -> None:
        """Steps of a task are done."""
        self._running[task.name] = done * task.recipe.data.batch_size
        self._shown.update(NAME, self._done + sum(self._running.values()), task.name)

    def row(self, row: LedgerRow) -> None:
        """A row was written."""
        if row.kind == "choice":
            print(f"chosen for {row.arm}, {row.stage}: {row.settings}", file=sys.stderr)
            return
        self._running.clear()
        self._done += self._weights[row.arm, row.stage]
        loss = row.metrics.get("val", {}).get("coca_loss")
        found = "diverged" if loss is None else f"CoCa loss on val {loss:.4f}"
        print(f"{row.kind}: {row.arm}, seed {row.seed}, {row.stage}, {row.settings}: {found}", file=sys.stderr)


def pairs_by_stage(plan: Plan) -> dict[tuple[str, str], int]:
    """Pairs that each stage of each arm trains on."""
    weights = {}
    for arm in plan.arms:
        for path in (plan.pretrain, *plan.finetune):
            stage = path.rpartition("/")[2].rpartition(".")[0]
            recipe = stage_recipe(plan, arm_named(plan, arm.name), stage, 0, {})
            weights[arm.name, stage] = recipe.schedule.steps * recipe.data.batch_size
    return weights


def what_is_left(plan: Plan, place: Place, part: StudyPart) -> str:
    """What is left to do."""
    agenda = Agenda(plan, part, place.folder_of, ())
    return str(agenda.lacking())
