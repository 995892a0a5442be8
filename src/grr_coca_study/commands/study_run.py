"""Run a study with progress bars, for the commands `study run` and `demo`."""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache

from grr_coca.cli.progress import JobProgress, bars
from grr_coca.common.errors import Interruption
from grr_coca_study.plan import Plan, find_arm, point_title
from grr_coca_study.rows import LedgerRow
from grr_coca_study.running.agenda import RemainingWork, RunGroup, Task
from grr_coca_study.running.run import ProgressCallbacks, Study, StudyFolders
from grr_coca_study.running.workers import Workers
from grr_coca_study.stages import stage_recipe


def run_with_progress(
    plan: Plan,
    folders: StudyFolders,
    workers: Workers,
    arms: Collection[str] | None = None,
    has_bar_of_each_arm: bool = False,
) -> None:
    """Run a study with progress bars, and print each row as a line.

    Args:
        plan: Plan of the study.
        folders: Folders of the study.
        workers: Worker processes.
        arms: Names of the arms to run. None means all.
        has_bar_of_each_arm: Whether to show one bar per arm instead of one bar in total.

    Raises:
        UserError: As for `Study` and `Study.run`.
        Interruption: If SIGTERM was received. All runs are saved.
    """
    names = {arm.name: arm.name if has_bar_of_each_arm else "study" for arm in plan.arms}

    @cache
    def pairs_of(want: RunGroup) -> int:
        kind, name, stage = want
        recipe = stage_recipe(plan, find_arm(plan, name), stage, 0, {}, is_trial=kind == "trial")
        return recipe.schedule.steps * recipe.data.batch_size

    def pairs(missing: Counter[RunGroup]) -> Counter[str]:
        found: Counter[str] = Counter()
        for want, count in missing.items():
            found[names[want[1]]] += count * pairs_of(want)
        return found

    study = Study(plan, folders, arms)
    totals = pairs(study.agenda.missing_runs())
    with bars({name: max(1, totals[name]) for name in names.values()}) as shown:
        try:
            study.run(workers, _Progress(shown, names, pairs, totals))
        except (KeyboardInterrupt, Interruption):
            print("stopping as soon as every run has saved its progress", file=sys.stderr)
            raise


class _Progress(ProgressCallbacks):
    """Progress bars for the fraction of all pairs on which models have been trained.

    Attributes:
        names: Name of the bar for each arm.
        pairs: Number of pairs on which missing runs train, by bar.
        totals: Number of pairs of all runs, by bar.
    """

    def __init__(
        self,
        shown: JobProgress,
        names: Mapping[str, str],
        pairs: Callable[[Counter[RunGroup]], Counter[str]],
        totals: Counter[str],
    ) -> None:
        self._shown = shown
        self._names = names
        self._pairs = pairs
        self._totals = totals
        self._ended: Counter[str] | None = None
        self._running: dict[str, tuple[str, int]] = {}

    def remaining(self, agenda: RemainingWork) -> None:
        """Count the work that this process and others have done."""
        missing = agenda.missing_runs()
        if self._ended is None:
            counts = {kind: sum(n for (k, _, _), n in missing.items() if k == kind) for kind in ("trial", "run")}
            work = [f"{count:,} {kind}{'s' * (count > 1)}" for kind, count in counts.items() if count]
            print(f"{' and '.join(work) or 'nothing'} to do", file=sys.stderr)
        self._ended = self._totals - self._pairs(missing)

    def step(self, task: Task, done: int) -> None:
        """Show the finished steps of a task."""
        assert self._ended is not None, "a study reads the remaining work before it starts a task"
        bar = self._names[task.arm]
        self._running[task.name] = bar, done * task.recipe.data.batch_size
        running = sum(pairs for name, pairs in self._running.values() if name == bar)
        self._shown.update(bar, self._ended[bar] + running, task.title)

    def row(self, row: LedgerRow) -> None:
        """Print a row of this process."""
        self._running.clear()
        loss = row.metrics.get("val", {}).get("coca_loss")
        found = "diverged" if loss is None else f"CoCa loss on val {loss:.4f}"
        named = ", ".join(filter(None, (row.arm, point_title(row.settings), f"seed {row.seed}", row.stage)))
        print(f"{named}: {found}", file=sys.stderr)

    def note(self, text: str) -> None:
        """Print a note."""
        print(text, file=sys.stderr)
