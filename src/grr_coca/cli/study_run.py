"""Runs a study with a progress bar, or forecasts the work that it still lacks."""

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from grr_coca.cli.progress import JobProgress, bars
from grr_coca.common.errors import Interruption
from grr_coca.study.plan import Plan, point_title, refuse_earlier_ledger, stage_names
from grr_coca.study.rows import LedgerRow, RowFolder
from grr_coca.study.running.agenda import Agenda, Task, Want
from grr_coca.study.running.expectation import Expectation, expect_study
from grr_coca.study.running.run import Place, Watch, run_study
from grr_coca.study.running.workers import usable_device
from grr_coca.study.stages import stage_recipe

NAME = "study"


def run_with_progress(plan: Plan, place: Place, arms: Sequence[str], num_jobs: int) -> None:
    """Run some arms of a study with a progress bar, and print a line for each row."""
    weights = _pairs_by_want(plan)
    total = _pairs(Agenda(plan, place.folder_of, arms=arms), weights)
    with bars({NAME: max(1, total)}) as shown:
        try:
            run_study(plan, place, num_jobs, _StudyWatch(shown, weights, total), arms)
        except (KeyboardInterrupt, Interruption):
            print("stopping: every run saves first", file=sys.stderr)
            raise


def what_is_left(plan: Plan, place: Place, arms: Sequence[str], num_jobs: int) -> str:
    """A table with the runs, hours and disk space that some arms of a study still need on this machine."""
    refuse_earlier_ledger(place.out)
    agenda = Agenda(plan, place.folder_of, RowFolder(place.out).new_rows(), arms)
    agenda.require_sound_points()
    wants = agenda.lacking()
    print("Measuring the pace of this machine …", file=sys.stderr)
    return _forecast(plan, place, num_jobs, expect_study(plan, wants, place.runs, num_jobs, usable_device()))


class _StudyWatch(Watch):
    """Shows the done share of all work of a study."""

    def __init__(self, shown: JobProgress, weights: Mapping[Want, int], total: int) -> None:
        self._shown = shown
        self._weights = weights
        self._total = total
        self._ended: int | None = None
        self._running: dict[str, int] = {}

    def left(self, agenda: Agenda) -> None:
        """Count the work that is done, by this process and others."""
        if self._ended is None:
            lacking = agenda.lacking()
            counts = {kind: sum(n for (k, _, _), n in lacking.items() if k == kind) for kind in ("trial", "run")}
            print(f"to do: trials {counts['trial']}, runs {counts['run']}", file=sys.stderr)
        self._ended = self._total - _pairs(agenda, self._weights)

    def step(self, task: Task, done: int) -> None:
        """Show the steps that a task has done."""
        self._running[task.name] = done * task.recipe.data.batch_size
        self._shown.update(NAME, (self._ended or 0) + sum(self._running.values()), task.title)

    def row(self, row: LedgerRow) -> None:
        """Print a row of this process."""
        self._running.clear()
        loss = row.metrics.get("val", {}).get("coca_loss")
        found = "diverged" if loss is None else f"CoCa loss on val {loss:.4f}"
        named = ", ".join(filter(None, (row.arm, point_title(row.settings), f"seed {row.seed}", row.stage)))
        print(f"{named}: {found}", file=sys.stderr)

    def note(self, text: str) -> None:
        """Print a remark."""
        print(text, file=sys.stderr)


def _pairs(agenda: Agenda, weights: Mapping[Want, int]) -> int:
    """Number of pairs on which the missing trials and runs train."""
    return sum(count * weights[want] for want, count in agenda.lacking().items())


def _pairs_by_want(plan: Plan) -> dict[Want, int]:
    """Number of pairs that each trial and run trains on, the measure of progress."""
    weights: dict[Want, int] = {}
    for arm in plan.arms:
        for stage in stage_names(plan):
            run, trial = (stage_recipe(plan, arm, stage, 0, {}, is_trial) for is_trial in (False, True))
            weights["run", arm.name, stage] = run.schedule.steps * run.data.batch_size
            weights["trial", arm.name, stage] = trial.schedule.steps * trial.data.batch_size
    return weights


def _forecast(plan: Plan, place: Place, num_jobs: int, expected: Expectation) -> str:
    width = max(len(arm.name) for arm in plan.arms)
    lines = [f"{'arm':<{width}}  trials  runs  core-hours"]
    for arm in expected.hours:
        trials, runs = (_count(expected, kind, arm) for kind in ("trial", "run"))
        lines.append(f"{arm:<{width}}  {trials:>6}  {runs:>4}  {expected.hours[arm]:>10.2f}")
    total = sum(expected.hours.values())
    for stage, pace in list(expected.paces.items())[:2]:
        lines.append(f"a step of {stage}: {pace.step:.2f} s ({plan.baseline}, one core)")
    lines.append(f"in all {total:.1f} core-hours: {total / num_jobs:.1f} hours with --jobs {num_jobs}")
    lines.append(
        f"disk: up to {expected.run_bytes / 1e9:.1f} GB in {place.runs}, where {expected.free / 1e9:.0f} GB are free, "
        f"and about {expected.ledger_bytes / 1e6:.1f} MB for the rows"
    )
    lines += power_in_words(plan)
    if expected.run_bytes > expected.free:
        lines.append(f"THE DISK IS TOO SMALL: give --runs a folder with {expected.run_bytes / 1e9:.1f} GB")
    return "\n".join(lines)


def power_in_words(plan: Plan) -> list[str]:
    """A line on the differences that a plan can find; none without seeds, or without scipy of the extra `study`."""
    if not plan.seeds or find_spec("scipy") is None:
        return []
    from grr_coca.study.statistics import min_seeds, smallest_detectable_effect  # late: imports scipy

    num_seeds, num_endpoints = len(plan.seeds), len(plan.endpoints.primary)
    counts = f"{num_seeds} seed{'' if num_seeds == 1 else 's'} and {num_endpoints} primary endpoint"
    counts += "" if num_endpoints == 1 else "s"
    needed = min_seeds(num_endpoints)
    if num_seeds < needed:
        return [f"power: with {counts}, nothing is called better or worse: that takes {needed} seeds"]
    smallest = smallest_detectable_effect(num_seeds, num_endpoints)
    return [
        f"power: with {counts}, a true change of {smallest:.1f} standard deviations over seeds is called better or "
        "worse in four studies of five"
    ]


def _count(expected: Expectation, kind: str, arm: str) -> int:
    return sum(count for (k, a, _), count in expected.wants.items() if (k, a) == (kind, arm))
