"""Agenda of a study: the missing runs, and the runs that can start now.

The agenda is a function of the plan and the rows.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from grr_coca.common.dict_to_dataclass import flatten
from grr_coca.common.errors import UserError
from grr_coca.train.recipe import Recipe
from grr_coca_study.ledger import Digests, best_point, cost
from grr_coca_study.plan import (
    Arm,
    Plan,
    Settings,
    arms_tuned_together,
    find_arm,
    missing_scores,
    point_title,
    points_of,
    scores_captions,
    search_seeds,
    stage_names,
)
from grr_coca_study.rows import LedgerRow, row_name
from grr_coca_study.stages import data_digest, folder_digest, recipe_digest, stage_recipe

FINISHED = "finished"
"""Name of an empty file that marks the folder of a run that has been trained and measured."""

FolderOf = Callable[[str, int, str, str], Path]
"""Function that returns the folder of a run, given its arm, seed, stage and digest."""

RunGroup = tuple[str, str, str]
"""Kind (`run` or `trial`), arm and stage of missing rows."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Stage of a study for an arm, a point of its grid and a seed, with all inputs that a process needs to run it.

    Attributes:
        recipe_digest, data_digest: Digests for the row, see `LedgerRow`.
        settings: Point of the grid.
        is_trial: Whether the stage is measured only on `val`.
        recipe: Recipe with all settings.
        folder: Folder of the run.
        start: Pretraining task from which a fine-tuning starts. None for pretraining.
    """

    plan: Plan
    arm: str
    seed: int
    stage: str
    settings: Settings
    is_trial: bool
    recipe: Recipe
    recipe_digest: str
    data_digest: str
    folder: Path
    start: "Task | None"

    @property
    def start_data_digest(self) -> str | None:
        """Digest of the data on which the start model of a fine-tuning run was pretrained. None for pretraining."""
        return None if self.start is None else self.start.data_digest

    @property
    def scores_captions(self) -> bool:
        """Whether to caption the test splits and score the captions."""
        return scores_captions(self.plan) and not self.is_trial

    @property
    def title(self) -> str:
        """Display name of the task."""
        return ", ".join(filter(None, (self.arm, self.stage, point_title(self.settings), f"seed {self.seed}")))

    @property
    def name(self) -> str:
        """Name of the task's row file and of its claim."""
        digests = (self.recipe_digest, self.data_digest, self.start_data_digest, str(self.scores_captions))
        return row_name(self.arm, point_title(self.settings), self.seed, self.stage, digests)


class RemainingWork:
    """Runs of a study that do not have a row yet, and the choices of settings that the rows determine.

    Args:
        plan: Plan of the study.
        folder_of: Function that returns the folder of a run.
        rows: Existing rows, which are counted as by `add`.
        arms: Names of the arms whose runs are included. None means all.
    """

    def __init__(
        self, plan: Plan, folder_of: FolderOf, rows: Iterable[LedgerRow] = (), arms: Collection[str] | None = None
    ) -> None:
        self._plan = plan
        self._folder_of = folder_of
        self._stages = stage_names(plan)
        self._arms = [arm for arm in plan.arms if arms is None or arm.name in arms]
        self._trial_seeds = search_seeds(plan)
        self._seeds = (*self._trial_seeds, *plan.seeds)
        self._data = {stage: data_digest(stage_recipe(plan, plan.arms[0], stage, 0, {})) for stage in self._stages}
        self._rows: dict[tuple[str, int, str, str], LedgerRow] = {}
        # Both functions are cached, because the process that feeds the workers has no separate core. A task depends
        # only on the plan, and a choice also on the rows.
        self._task = cache(self._new_task)
        self._chosen = cache(self._choose)
        for row in rows:
            self.add(row)

    def add(self, row: LedgerRow, *, is_new: bool = False) -> None:
        """Count a row, unless its run must be repeated: the row was computed from different data, or lacks scores.

        `is_new` states whether the run has just ended. Its scores are then not checked, because a score that is still
        missing was NaN, and repeating the run would not help.
        """
        is_of_data = row.data_digest == self._data.get(row.stage)
        starts_from_data = row.start_data_digest in (None, self._data[self._stages[0]])
        if is_of_data and starts_from_data and (is_new or not missing_scores(self._plan, row)):
            self._rows[row.arm, row.seed, row.stage, row.recipe_digest] = row
            self._chosen.cache_clear()

    def open_tasks(self) -> list[Task]:
        """Return the tasks that can start now, ordered by seed. Tuning seeds come first."""
        left = [task for seed, arm in product(self._seeds, self._arms) for task in self._missing_of_arm(arm, seed)[0]]
        return [task for task in left if task.start is None or (task.start.folder / FINISHED).exists()]

    def missing_runs(self) -> Counter[RunGroup]:
        """Return the number of missing trials and runs, by kind, arm and stage.

        A pretraining that has a row also counts as missing if its model was lost and other runs start from it.
        """
        counts: Counter[RunGroup] = Counter()
        for seed, arm in product(self._seeds, self._arms):
            missing, undecided = self._missing_of_arm(arm, seed)
            kind = "trial" if seed in self._trial_seeds else "run"
            for stage, count in (Counter(task.stage for task in missing) + undecided).items():
                counts[kind, arm.name, stage] += count
        return counts

    def disposable_run_folders(self) -> Iterator[Path]:
        """Yield the folders of runs that have rows and from which no later run starts."""
        for seed, arm in product(self._seeds, self._plan.arms):
            first, *later = (self._tasks_of(arm, seed, stage) for stage in self._stages)
            kept = {task.start.folder for tasks in later for task in self._missing(tasks or ()) if task.start}
            for tasks in (None if None in later else first, *later):  # any of the pretrained models may still be chosen
                yield from (task.folder for task in tasks or () if self._row(task) and task.folder not in kept)

    # --- Choices

    def choices(self) -> dict[tuple[str, str], Settings]:
        """Return the points that are chosen for later runs, by arm and stage."""
        chosen: dict[tuple[str, str], Settings] = {}
        for arm, stage in self._needed_choices():
            best = self._chosen(arm.name, stage)
            if best is not None:
                chosen[arm.name, stage] = points_of(self._plan, arm, stage)[best]
        return chosen

    def require_sound_points(self) -> None:
        """Check that each grid from which a later run takes its best point has a point at which no run diverged.

        Raises:
            UserError: If runs diverged at all points of a grid. The message names the arms and the stage.
        """
        for arm, stage in self._needed_choices():
            costs = self._costs(arm, stage)
            if costs is not None and best_point(costs) is None:
                names = ", ".join(each.name for each in arms_tuned_together(self._plan, arm))
                raise UserError(f"{names}, {stage}: runs diverged at every point of the grid; use lower learning rates")

    def _needed_choices(self) -> Iterator[tuple[Arm, str]]:
        """Yield the arms and stages with more than one candidate point, from which later runs need the best one."""
        for arm, stage in product(self._arms, self._stages):
            if len(points_of(self._plan, arm, stage)) > 1:
                yield arm, stage

    def _choose(self, name: str, stage: str) -> int | None:
        """Return the index of the best point of a stage, or None if rows are missing or runs diverged at all points."""
        arm = find_arm(self._plan, name)
        if len(points_of(self._plan, arm, stage)) == 1:
            return 0
        costs = self._costs(arm, stage)
        return None if costs is None else best_point(costs)

    def _costs(self, arm: Arm, stage: str) -> list[list[float]] | None:
        """Return the costs of the points of a grid in the form that `best_point` takes, or None if rows are missing."""
        costs = []
        for each, seed in product(arms_tuned_together(self._plan, arm), search_seeds(self._plan)):
            tasks = self._tasks_of(each, seed, stage)
            if tasks is None or self._missing(tasks):
                return None
            costs.append([math.inf if row is None else cost(row) for row in map(self._row, tasks)])
        return costs

    @property
    def digests(self) -> Digests:
        """Digests of the rows that count, except those of runs that still depend on a choice."""
        recipes, trials = map(self._recipe_digests, (self._plan.seeds, self._trial_seeds))
        return Digests(recipes=recipes, data=self._data, trials=trials)

    def _recipe_digests(self, seeds: Sequence[int]) -> dict[str, dict[str, tuple[str, ...]]]:
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for arm, seed, stage in product(self._plan.arms, seeds[:1], self._stages):
            tasks = self._tasks_of(arm, seed, stage)
            if tasks:
                found.setdefault(arm.name, {})[stage] = tuple(task.recipe_digest for task in tasks)
        return found

    # --- Tasks

    def _missing_of_arm(self, arm: Arm, seed: int) -> tuple[list[Task], Counter[str]]:
        """Return the missing tasks of an arm with a seed, and for each stage the number of tasks that depend on an open
        choice.
        """
        missing: list[Task] = []
        undecided: Counter[str] = Counter()
        for stage in self._stages:
            tasks = self._tasks_of(arm, seed, stage)
            if tasks is None:
                undecided[stage] = self._num_points(arm, seed, stage)
            else:
                missing += self._missing(tasks)
        start = next((task.start for task in missing if task.start is not None), None)
        if start is not None and start not in missing and not (start.folder / FINISHED).exists():
            missing.append(start)  # the model of the task was lost
        return missing, undecided

    def _tasks_of(self, arm: Arm, seed: int, stage: str) -> list[Task] | None:
        """Return all tasks of a stage, or None if they depend on an open choice.

        Trials are run at all points of a grid, and other runs only at the best point.
        """
        is_pretraining = stage == self._stages[0]
        start = None if is_pretraining else self._chosen(arm.name, self._stages[0])
        best = None
        if seed not in self._trial_seeds:
            best = self._chosen(arm.name, stage)
            if best is None:
                return None
        if start is None and not is_pretraining:
            return None
        points = range(self._num_points(arm, seed, stage)) if best is None else [best]
        return [self._task(arm.name, seed, stage, point, start) for point in points]

    def _num_points(self, arm: Arm, seed: int, stage: str) -> int:
        """Return the number of tasks that an arm with a seed has in a stage."""
        points = len(points_of(self._plan, arm, stage))
        if seed not in self._trial_seeds:
            return 1
        is_start = stage == self._stages[0] and bool(arm.finetune_grid)
        return points if arm in arms_tuned_together(self._plan, arm) and (points > 1 or is_start) else 0

    def _missing(self, tasks: Iterable[Task]) -> list[Task]:
        """Return the tasks without a row, except those that start from a diverged model."""
        return [task for task in tasks if self._row(task) is None and not self._starts_from_diverged(task)]

    def _starts_from_diverged(self, task: Task) -> bool:
        row = None if task.start is None else self._row(task.start)
        return row is not None and row.kind == "diverged"

    def _row(self, task: Task) -> LedgerRow | None:
        return self._rows.get((task.arm, task.seed, task.stage, task.recipe_digest))

    def _new_task(self, name: str, seed: int, stage: str, point: int, start_point: int | None) -> Task:
        """Create the task of an arm at the point with index `point`. `start_point` is the index for its pretraining."""
        plan, arm, is_trial = self._plan, find_arm(self._plan, name), seed in self._trial_seeds
        start = None if start_point is None else self._task(name, seed, self._stages[0], start_point, None)
        settings = points_of(plan, arm, stage)[point]
        recipe = stage_recipe(plan, arm, stage, seed, settings, is_trial)
        digest = recipe_digest(recipe, None if start is None else start.recipe_digest)
        # If the recipe or the data change, the folder is a different one, so that no outdated run is resumed.
        data = {self._data[self._stages[0]], self._data[stage]}
        return Task(
            plan=plan,
            arm=name,
            seed=seed,
            stage=stage,
            settings={key: flatten(recipe)[key] for key in settings},
            is_trial=is_trial,
            recipe=recipe,
            recipe_digest=digest,
            data_digest=self._data[stage],
            folder=self._folder_of(name, seed, stage, folder_digest(digest, data)),
            start=start,
        )
