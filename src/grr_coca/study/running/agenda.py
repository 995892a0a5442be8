"""The agenda of a study: which runs are missing, and which of them can start now.

It is a function of the plan and of the rows in the ledger.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grr_coca.common.errors import UserError
from grr_coca.study.ledger import Digests, best_point, cost
from grr_coca.study.plan import (
    Arm,
    Plan,
    Settings,
    lacking_scores,
    point_title,
    points_of,
    scores_captions,
    search_seeds,
    showcase_of,
    stage_names,
    tuned_with,
)
from grr_coca.study.rows import LedgerRow, row_name
from grr_coca.study.stages import data_digest, folder_digest, recipe_digest, settings_of, stage_recipe
from grr_coca.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage of a study for one arm, point of its grid and seed: all that a process needs to run it.

    - `is_trial`: True: it is measured on `val` alone
    - `recipe`: with all settings
    - `folder`: folder of the run
    - `start`: the pretraining from which a fine-tuning starts
    - `showcase`, `num_captions`: the test split whose captions are shown, and how many
    - `without`: see `Plan`
    - `scores_captions`: True: caption the test splits, and score the captions
    """

    is_trial: bool
    arm: str
    seed: int
    stage: str
    recipe: Recipe
    settings: dict[str, object]
    recipe_digest: str
    data_digest: str
    folder: Path
    start: "Task | None"
    showcase: str
    num_captions: int
    without: tuple[str, ...]
    scores_captions: bool

    @property
    def start_data_digest(self) -> str | None:
        """Digest of the data of the pretraining from which a fine-tuning starts."""
        return None if self.start is None else self.start.data_digest

    @property
    def point(self) -> str:
        """Title of the point of the grid; empty without one."""
        return point_title(self.settings)

    @property
    def title(self) -> str:
        """Display name."""
        return ", ".join(filter(None, (self.arm, self.stage, self.point, f"seed {self.seed}")))

    @property
    def name(self) -> str:
        """Name of the file of its row, and of its claim."""
        digests = (self.recipe_digest, self.data_digest, self.start_data_digest, str(self.scores_captions))
        return row_name(self.arm, self.point, self.seed, self.stage, digests)


FINISHED = "finished"
"""Name of the empty file that marks the folder of a run that was trained and measured."""


FolderOf = Callable[[str, int, str, str], Path]
"""The folder of a run, by arm, seed, stage and digest."""

Want = tuple[Literal["run", "trial"], str, str]
"""Kind, arm and stage of missing rows."""


class Agenda:
    """The missing runs of some arms of a study; None: of all. `add` counts a row of the ledger."""

    def __init__(
        self, plan: Plan, folder_of: FolderOf, rows: Iterable[LedgerRow] = (), arms: Iterable[str] | None = None
    ) -> None:
        self._plan = plan
        self._folder_of = folder_of
        self._stages = stage_names(plan)
        mine = {arm.name for arm in plan.arms} if arms is None else {*arms}
        self._arms = [arm for arm in plan.arms if arm.name in mine]
        self._trial_seeds = () if plan.tuning is None else plan.tuning.seeds
        first = plan.arms[0]
        self._data = {stage: data_digest(stage_recipe(plan, first, stage, 0, {})) for stage in self._stages}
        self._rows: dict[tuple[str, int, str, str], LedgerRow] = {}
        # Cached, since each task and choice is asked for many times, and the process that feeds the workers has no core
        # of its own. A task depends on the plan alone, a choice on the rows too.
        self._tasks: dict[tuple[str | int | Path | None, ...], Task] = {}
        self._choices: dict[tuple[str, str], int | None] = {}
        for row in rows:
            self.add(row)

    def add(self, row: LedgerRow, *, is_new: bool = False) -> None:
        """Count a row of the ledger, unless it is of other data or lacks scores, so that its run is repeated.

        `is_new`: its run has just ended. A score that is NaN is lacking, and repeating the run does not help.
        """
        is_of_data = row.data_digest == self._data.get(row.stage)
        starts_from_data = row.start_data_digest in (None, self._data[self._stages[0]])
        if is_of_data and starts_from_data and (is_new or not lacking_scores(self._plan, row)):
            self._rows[row.arm, row.seed, row.stage, row.recipe_digest] = row
            self._choices.clear()

    @property
    def digests(self) -> Digests:
        """The digests of valid rows, without those that still depend on a choice."""
        recipes, trials = map(self._recipe_digests, (self._plan.seeds, self._trial_seeds))
        return Digests(recipes=recipes, data=self._data, trials=trials)

    def _recipe_digests(self, seeds: Sequence[int]) -> dict[str, dict[str, tuple[str, ...]]]:
        found = {}
        for arm in self._plan.arms:
            tasks = {stage: self._tasks_of(arm, seed, stage) for seed in seeds[:1] for stage in self._stages}
            found[arm.name] = {
                t: tuple(task.recipe_digest for task in of_stage) for t, of_stage in tasks.items() if of_stage
            }
        return {arm: stages for arm, stages in found.items() if stages}

    def open_tasks(self) -> list[Task]:
        """The tasks that can start now, in order: those with the seeds of tuning first, then by seed."""
        seeds = (*self._trial_seeds, *self._plan.seeds)
        return [task for seed in seeds for arm in self._arms for task in self._open_of(arm, seed)]

    def lacking(self) -> Counter[Want]:
        """The number of missing trials and runs, by kind, arm and stage.

        A pretraining with a row counts too, if its model was lost and others start from it.
        """
        counts: Counter[Want] = Counter()
        for seed in (*self._trial_seeds, *self._plan.seeds):
            kind: Literal["run", "trial"] = "trial" if seed in self._trial_seeds else "run"
            for arm in self._arms:
                for stage in self._stages[1:]:
                    tasks = self._tasks_of(arm, seed, stage)
                    counts[kind, arm.name, stage] += (
                        self._num_points(arm, seed, stage) if tasks is None else len(self._missing(tasks))
                    )
                tasks = self._tasks_of(arm, seed, self._stages[0])
                pretraining = self._num_points(arm, seed, self._stages[0]) if tasks is None else 0
                begun = {task.name for task in self._open_of(arm, seed) if task.start is None}
                counts[kind, arm.name, self._stages[0]] += pretraining + len(begun)
        return +counts

    def choices(self) -> dict[tuple[str, str], Settings]:
        """The points that were chosen for later runs, by arm and stage."""
        chosen: dict[tuple[str, str], Settings] = {}
        for arm, stage in self._needed_choices():
            points, best = points_of(self._plan, arm, stage), self._chosen(arm, stage)
            if len(points) > 1 and best is not None:
                chosen[arm.name, stage] = points[best]
        return chosen

    def require_sound_points(self) -> None:
        """Raise an error if an arm diverged at every point among which a later run needs a choice.

        Raises:
            UserError: it is so; names the arm and the stage.
        """
        for arm, stage in self._needed_choices():
            costs = self._costs(arm, stage)
            if costs is not None and best_point(costs) is None:
                names = ", ".join(each.name for each in tuned_with(self._plan, arm))
                raise UserError(
                    f"{names}, {stage}: no point of the grid is without a run that diverged; give lower rates"
                )

    def _needed_choices(self) -> Iterator[tuple[Arm, str]]:
        """The arms and stages whose best points later runs need."""
        stages = self._stages if self._plan.tuning is not None else self._stages[:1] if self._stages[1:] else ()
        for arm in self._arms:
            for stage in stages:
                yield arm, stage

    def spent_folders(self, row: LedgerRow) -> list[Path]:
        """Folders of runs that no later run needs, now that this row is in the ledger."""
        arm = next((arm for arm in self._plan.arms if arm.name == row.arm), None)
        if arm is None:
            return []
        # The last trial ends the tuning of all that are tuned with it, with all seeds.
        seeds = search_seeds(self._plan) if row.seed in search_seeds(self._plan) else (row.seed,)
        return [folder for each in tuned_with(self._plan, arm) for seed in seeds for folder in self._spent(each, seed)]

    def _spent(self, arm: Arm, seed: int) -> Iterator[Path]:
        later = [self._tasks_of(arm, seed, stage) for stage in self._stages[1:]]
        for tasks in filter(None, later):
            yield from (task.folder for task in tasks if self._row(task) is not None)
        if None in later:  # any of the pretrained models may be chosen
            return
        starts = {task.start.folder for tasks in later for task in self._missing(tasks or ()) if task.start is not None}
        for task in self._tasks_of(arm, seed, self._stages[0]) or ():
            if self._row(task) is not None and task.folder not in starts:
                yield task.folder

    # --- Tasks

    def _tasks_of(self, arm: Arm, seed: int, stage: str) -> list[Task] | None:
        """All tasks of a stage; None if they depend on a choice that is open.

        Trials are run at all points of a grid. So are runs if there is no tuning, and otherwise at the best alone.
        """
        is_pretraining = stage == self._stages[0]
        start = None if is_pretraining else self._start(arm, seed)
        if start is None and not is_pretraining:
            return None
        points: list[dict[str, object]] = points_of(self._plan, arm, stage)
        if seed in self._trial_seeds:
            points = points if self._num_points(arm, seed, stage) else []
        elif self._plan.tuning is not None:
            best = self._chosen(arm, stage)
            if best is None:
                return None
            points = [points[best]]
        return [self._task(arm, seed, stage, settings, start) for settings in points]

    def _start(self, arm: Arm, seed: int) -> Task | None:
        """The pretraining from which the fine-tunings of an arm start; None if its point has not been chosen."""
        best = self._chosen(arm, self._stages[0])
        if best is None:
            return None
        settings = points_of(self._plan, arm, self._stages[0])[best]
        return self._task(arm, seed, self._stages[0], settings, None)

    def _chosen(self, arm: Arm, stage: str) -> int | None:
        """Index of the best point of a stage; None if rows are missing, or a run diverged at each point."""
        key = (arm.name, stage)
        if key not in self._choices:
            self._choices[key] = self._best(arm, stage)
        return self._choices[key]

    def _best(self, arm: Arm, stage: str) -> int | None:
        if len(points_of(self._plan, arm, stage)) == 1:
            return 0
        costs = self._costs(arm, stage)
        return None if costs is None else best_point(costs)

    def _costs(self, arm: Arm, stage: str) -> list[list[float]] | None:
        """The costs of each point of a grid, see `best_point`; None without a grid, or if rows are missing."""
        costs: list[list[float]] = [[] for _ in points_of(self._plan, arm, stage)]
        if len(costs) == 1:
            return None
        for each in tuned_with(self._plan, arm):
            for seed in search_seeds(self._plan):
                tasks = self._tasks_of(each, seed, stage)
                if tasks is None or self._missing(tasks):
                    return None
                for of_point, row in zip(costs, map(self._row, tasks), strict=True):
                    of_point.append(math.inf if row is None else cost(row))
        return costs

    def _open_of(self, arm: Arm, seed: int) -> list[Task]:
        """The missing pretrainings, and the missing fine-tunings whose start is there."""
        tasks = self._missing(self._tasks_of(arm, seed, self._stages[0]) or ())
        later = [task for stage in self._stages[1:] for task in self._missing(self._tasks_of(arm, seed, stage) or ())]
        start = self._start(arm, seed) if later else None
        if start is None or (start.folder / FINISHED).exists():
            return tasks + later
        return tasks if start in tasks else [*tasks, start]  # not trained yet, or its model was lost

    def _missing(self, tasks: Iterable[Task]) -> list[Task]:
        """The tasks without a row, except those that start from a model that diverged."""
        return [task for task in tasks if self._row(task) is None and not self._starts_diverged(task)]

    def _starts_diverged(self, task: Task) -> bool:
        row = None if task.start is None else self._row(task.start)
        return row is not None and row.kind == "diverged"

    def _num_points(self, arm: Arm, seed: int, stage: str) -> int:
        """The number of tasks of a stage."""
        points = len(points_of(self._plan, arm, stage))
        if seed not in self._trial_seeds:
            return points if self._plan.tuning is None else 1
        is_start = stage == self._stages[0] and bool(arm.finetune_grid)
        return points if arm in tuned_with(self._plan, arm) and (points > 1 or is_start) else 0

    def _row(self, task: Task) -> LedgerRow | None:
        return self._rows.get((task.arm, task.seed, task.stage, task.recipe_digest))

    def _task(self, arm: Arm, seed: int, stage: str, settings: Settings, start: Task | None) -> Task:
        key = (arm.name, seed, stage, repr(settings), None if start is None else start.folder)
        if key not in self._tasks:
            self._tasks[key] = self._new_task(arm, seed, stage, settings, start)
        return self._tasks[key]

    def _new_task(self, arm: Arm, seed: int, stage: str, settings: Settings, start: Task | None) -> Task:
        plan, is_trial = self._plan, seed in self._trial_seeds
        recipe = stage_recipe(plan, arm, stage, seed, settings, is_trial)
        digest = recipe_digest(recipe, None if start is None else start.recipe_digest)
        showcase, num_captions = showcase_of(plan, stage)
        # Another recipe or other data get another folder, so that no stale run is resumed.
        data = {self._data[self._stages[0]], self._data[stage]}
        return Task(
            is_trial=is_trial,
            arm=arm.name,
            seed=seed,
            stage=stage,
            recipe=recipe,
            settings=settings_of(recipe, settings),
            recipe_digest=digest,
            data_digest=self._data[stage],
            folder=self._folder_of(arm.name, seed, stage, folder_digest(digest, data)),
            start=start,
            showcase=showcase,
            num_captions=num_captions,
            without=plan.without if stage == self._stages[0] else (),
            scores_captions=scores_captions(plan) and not is_trial,
        )
