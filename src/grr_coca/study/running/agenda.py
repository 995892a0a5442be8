"""The agenda of a study: which trials and runs are missing, and which of them can start now.

It is a function of the plan and of the rows in the ledger.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from grr_coca.common.errors import UserError
from grr_coca.study.ledger import Digests, Kind, LedgerRow
from grr_coca.study.plan import (
    LOSS_METRICS,
    Arm,
    Plan,
    Tuning,
    arm_named,
    scores_captions,
    showcase_of,
    stage_names,
)
from grr_coca.study.stages import (
    Settings,
    data_digest,
    folder_digest,
    grid_of,
    recipe_digest,
    settings_of,
    stage_recipe,
)
from grr_coca.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage of a study for one arm and seed: all that a process needs to run it.

    - `recipe`: with all settings
    - `folder`: folder of the run
    - `start`, `start_data_digest`: folder and data of the pretraining from which a fine-tuning starts
    - `showcase`, `num_captions`: the test split whose captions are shown, and how many
    - `without`: see `Plan`
    - `scores_captions`: True: caption the test splits, and score the captions
    """

    kind: Kind
    arm: str
    seed: int
    stage: str
    recipe: Recipe
    settings: dict[str, object]
    recipe_digest: str
    data_digest: str
    start_data_digest: str | None
    folder: Path
    start: Path | None
    showcase: str
    num_captions: int
    without: tuple[str, ...]
    scores_captions: bool

    @property
    def name(self) -> str:
        """Display name."""
        tried = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.settings.items())
        return f"{self.arm}, {self.stage}, " + (f"trial of {tried}" if self.kind == "trial" else f"seed {self.seed}")


FINISHED = "finished"
"""Name of the empty file that marks the folder of a run that was trained and measured."""


FolderOf = Callable[[str, int, str, str], Path]
"""The folder of a run, by arm, seed, stage and digest."""

Want = tuple[Kind, str, str]
"""Kind, arm and stage of missing rows."""

_MIN_LOSS = 1e-30
"""Replaces a loss of exactly zero, which has no logarithm."""


class StudyPart(NamedTuple):
    """The part of a study that one process runs: some arms by name, and shard `shard` (from 1) of `num_shards`."""

    arms: tuple[str, ...]
    shard: int = 1
    num_shards: int = 1

    def has(self, index: int) -> bool:
        """True if the run, or the arm to be tuned, of this index belongs to this shard."""
        return index % self.num_shards == self.shard - 1


class Agenda:
    """The missing trials and runs of a part of a study. `add` counts a row of the ledger."""

    def __init__(self, plan: Plan, part: StudyPart, folder_of: FolderOf, rows: Iterable[LedgerRow]) -> None:
        self._plan = plan
        self._part = part
        self._folder_of = folder_of
        self._stages = stage_names(plan)
        first = plan.arms[0]
        self._data = {stage: data_digest(stage_recipe(plan, first, stage, 0, {})) for stage in self._stages}
        self._rows: dict[tuple[Kind, str, int, str, str, str], LedgerRow] = {}
        self._newest_choices: dict[tuple[str, str], tuple[int, str, str]] = {}
        # Cached, since each task and choice is asked for many times, and the process that feeds the workers has no core
        # of its own. A task depends on the plan alone, a choice on the rows too.
        self._tasks: dict[tuple[str | int | Path | None, ...], Task] = {}
        self._choices: dict[tuple[str, str], Settings | None] = {}
        for row in rows:
            self.add(row)

    def add(self, row: LedgerRow) -> None:
        """Count a row that is in the ledger."""
        if row.start_data_digest not in (None, self._data[self._stages[0]]):
            return  # fine-tuned from a model that was trained on other data
        key = (row.kind, row.arm, row.seed, row.stage, row.recipe_digest, row.data_digest)
        self._rows[key] = row
        self._choices.clear()
        if row.kind == "choice":
            self._newest_choices[row.arm, row.stage] = (row.seed, row.recipe_digest, row.data_digest)

    @property
    def digests(self) -> Digests:
        """The digests of valid rows, without those that still depend on tuning."""
        recipes: dict[str, dict[str, str]] = {}
        for arm in self._plan.arms:
            digests = {stage: self._digest(arm, stage) for stage in self._stages}
            recipes[arm.name] = {stage: digest for stage, digest in digests.items() if digest is not None}
        tuning = self._plan.tuning
        return Digests(
            recipes={arm: found for arm, found in recipes.items() if found},
            data=self._data,
            trials={arm.name: self._trial_digests(arm) for arm in self._plan.arms},
            tuning_seed=None if tuning is None else tuning.seed,
        )

    def lacking_choices(self) -> list[LedgerRow]:
        """A row for each choice that the trials decide and the ledger lacks: a copy of the chosen trial's row."""
        rows = []
        for arm in self._arms:
            for stage in self._stages:
                settings, points = self._chosen(arm, stage), self._points(arm, stage)
                if settings is None or not points:
                    continue
                row = points[grid_of(self._plan, stage).index(dict(settings))][1]
                newest = self._newest_choices.get((arm.name, stage))
                if row is not None and newest != (row.seed, row.recipe_digest, row.data_digest):
                    rows.append(replace(row, kind="choice", curve=()))
        return rows

    def open_tasks(self) -> list[Task]:
        """The tasks that can start now, in order: tuning first, then runs by seed."""
        tasks = [task for index, arm in enumerate(self._plan.arms) for task in self._open_trials(index, arm)]
        for place, seed in enumerate(self._plan.seeds):
            for index, arm in enumerate(self._plan.arms):
                if arm in self._arms and self._part.has(place * len(self._plan.arms) + index):
                    tasks += self._open_stages(arm, seed)
        return tasks

    def lacking(self) -> Counter[Want]:
        """The number of missing trials and runs of this part, by kind, arm and stage.

        A pretraining with a row counts too, if its model was lost and others start from it.
        """
        counts: Counter[Want] = Counter()
        for index, arm in enumerate(self._plan.arms):
            for stage in self._stages if arm in self._arms else ():
                if self._part.has(index):
                    counts["trial", arm.name, stage] = self._num_open_points(arm, stage)
                    if stage == self._stages[0] and self._lost_start(self._lacking_trials(arm)) is not None:
                        counts["trial", arm.name, stage] += 1
                counts["run", arm.name, stage] = self._num_lacking_runs(index, arm, stage)
        return +counts

    def spent_folders(self, row: LedgerRow) -> list[Path]:
        """Folders of runs that no later run needs, now that this row is in the ledger."""
        arm = arm_named(self._plan, row.arm)
        if row.kind == "trial":
            # The last trial ends the tuning of all.
            return [folder for each in self._tuned_with(arm) for folder in self._spent_trials(each)]
        if not all(self._is_done(arm, row.seed, stage) for stage in self._stages):
            is_start = row.stage == self._stages[0]
            return [] if is_start else [self._folder(arm, row.seed, row.stage, row.recipe_digest)]
        digests = {stage: self._digest(arm, stage) for stage in self._stages}
        return [self._folder(arm, row.seed, stage, digest) for stage, digest in digests.items() if digest is not None]

    @property
    def _arms(self) -> list[Arm]:
        return [arm for arm in self._plan.arms if arm.name in self._part.arms]

    def _num_lacking_runs(self, index: int, arm: Arm, stage: str) -> int:
        places = range(index, len(self._plan.seeds) * len(self._plan.arms), len(self._plan.arms))
        mine = [seed for place, seed in zip(places, self._plan.seeds, strict=True) if self._part.has(place)]
        if stage == self._stages[0]:
            return sum(self._needs_pretraining(arm, seed) for seed in mine)
        return sum(not self._is_done(arm, seed, stage) for seed in mine)

    def _num_open_points(self, arm: Arm, stage: str) -> int:
        points = self._points(arm, stage)
        if points is None:  # their start has not been chosen
            return len(grid_of(self._plan, stage))
        return sum(row is None for _, row in points)

    def _points(self, arm: Arm, stage: str) -> list[tuple[Task, LedgerRow | None]] | None:
        """The trials of a stage with their rows; empty if the stage is not tuned.

        None if the pretrained model from which the trials start has not been chosen.
        """
        grid = grid_of(self._plan, stage)
        if len(grid) == 1 or arm not in self._tuned_with(arm):
            return []
        start = None if stage == self._stages[0] else self._pretraining("trial", arm, self._tuning.seed)
        if stage != self._stages[0] and start is None:
            return None
        tasks = [self._task("trial", arm, self._tuning.seed, stage, settings, start) for settings in grid]
        return [(task, self._find("trial", arm, task.seed, stage, task.recipe_digest)) for task in tasks]

    @property
    def _tuning(self) -> Tuning:
        assert self._plan.tuning is not None, "only plans with tuning have trials"
        return self._plan.tuning

    def _tuned_with(self, arm: Arm) -> list[Arm]:
        """The arms whose trials choose the settings of an arm."""
        return [arm_named(self._plan, name) for name in self._tuning.arms] or [arm]

    def _trial_digests(self, arm: Arm) -> dict[str, tuple[str, ...]]:
        """Recipe digests of all trials by stage, without stages whose pretrained model has not been chosen."""
        points = {stage: self._points(arm, stage) for stage in self._stages}
        return {
            stage: tuple(task.recipe_digest for task, _ in found)
            for stage, found in points.items()
            if found is not None
        }

    def _open_trials(self, index: int, arm: Arm) -> list[Task]:
        if arm not in self._arms or not self._part.has(index):
            return []
        tasks = self._lacking_trials(arm)
        missing_start = self._lost_start(tasks)
        return [missing_start] if missing_start is not None else tasks

    def _lacking_trials(self, arm: Arm) -> list[Task]:
        """The missing trials. Those of fine-tuning are unknown until the pretrained model has been chosen."""
        return [task for stage in self._stages for task, row in self._points(arm, stage) or () if row is None]

    def _lost_start(self, tasks: Sequence[Task]) -> Task | None:
        """The trial from which these tasks start, if it has a row but its model was lost."""
        if all(task.start is None or _is_finished(task.start) for task in tasks):
            return None
        return self._pretraining("trial", arm_named(self._plan, tasks[0].arm), self._tuning.seed)

    def _open_stages(self, arm: Arm, seed: int) -> list[Task]:
        pretraining = self._pretraining("run", arm, seed)
        if pretraining is None:
            return []
        if self._needs_pretraining(arm, seed):
            return [pretraining]
        chosen = [(stage, self._chosen(arm, stage)) for stage in self._lacking_finetunings(arm, seed)]
        return [
            self._task("run", arm, seed, stage, settings, pretraining)
            for stage, settings in chosen
            if settings is not None
        ]

    def _lacking_finetunings(self, arm: Arm, seed: int) -> list[str]:
        return [stage for stage in self._stages[1:] if not self._is_done(arm, seed, stage)]

    def _needs_pretraining(self, arm: Arm, seed: int) -> bool:
        """True if the row is missing, or if the model was lost and fine-tunings start from it."""
        if not self._is_done(arm, seed, self._stages[0]):
            return True
        pretraining = self._pretraining("run", arm, seed)
        is_there = pretraining is not None and _is_finished(pretraining.folder)
        return not is_there and bool(self._lacking_finetunings(arm, seed))

    def _pretraining(self, kind: Kind, arm: Arm, seed: int) -> Task | None:
        """The pretraining of an arm with the chosen settings; None if they have not been chosen."""
        settings = self._chosen(arm, self._stages[0])
        return None if settings is None else self._task(kind, arm, seed, self._stages[0], settings, None)

    def _is_done(self, arm: Arm, seed: int, stage: str) -> bool:
        """True if a run was measured, or will never be, because it or its pretraining diverged."""
        stages = (self._stages[0], stage)
        return self._has("run", arm, seed, stage) or any(self._has_diverged(arm, seed, each) for each in stages)

    def _has_diverged(self, arm: Arm, seed: int, stage: str) -> bool:
        return self._has("diverged", arm, seed, stage) and not self._has("run", arm, seed, stage)

    def _has(self, kind: Kind, arm: Arm, seed: int, stage: str) -> bool:
        digest = self._digest(arm, stage)
        return digest is not None and self._find(kind, arm, seed, stage, digest) is not None

    def _chosen(self, arm: Arm, stage: str) -> Settings | None:
        """The chosen settings of a stage; None if trials are missing."""
        if (arm.name, stage) not in self._choices:
            self._choices[arm.name, stage] = self._best_of_grid(arm, stage)
        return self._choices[arm.name, stage]

    def _best_of_grid(self, arm: Arm, stage: str) -> Settings | None:
        """The best settings of a stage's grid; None if trials are missing.

        They are best on average over the arms that are tuned together, or for the arm alone. Among equals, the
        first.
        """
        grid = grid_of(self._plan, stage)
        if len(grid) == 1:
            return grid[0]
        tried = self._tuned_with(arm)
        columns = [self._costs(each, stage) for each in tried]
        if any(column is None for column in columns):
            return None
        sums = [sum(values) for values in zip(*(column for column in columns if column is not None), strict=True)]
        if math.isinf(min(sums)):
            names = ", ".join(each.name for each in tried)
            raise UserError(
                f"{names}, {stage}: all trials diverged; give lower learning rates under tuning: in the plan"
            )
        return grid[sums.index(min(sums))]

    def _costs(self, arm: Arm, stage: str) -> list[float] | None:
        """The cost of each trial of a grid, the lowest for the best; None if a trial is missing.

        It is the log of the loss, so that all arms weigh the same, or the negated recall. A trial that diverged has the
        highest cost.
        """
        score = self._tuning.metric
        found = []
        for _, row in self._points(arm, stage) or ():
            if row is None:
                return None
            value = row.metrics.get("val", {}).get(score, math.inf if score in LOSS_METRICS else 0.0)
            found.append(math.log(max(value, _MIN_LOSS)) if score in LOSS_METRICS else -value)
        return found or None

    def _digest(self, arm: Arm, stage: str) -> str | None:
        """Recipe digest of a run, the same for all seeds; None if its settings have not been chosen."""
        pretraining, settings = self._pretraining("run", arm, 0), self._chosen(arm, stage)
        if pretraining is None or settings is None:
            return None
        if stage == self._stages[0]:
            return pretraining.recipe_digest
        return self._task("run", arm, 0, stage, settings, pretraining).recipe_digest

    def _find(self, kind: Kind, arm: Arm, seed: int, stage: str, digest: str) -> LedgerRow | None:
        return self._rows.get((kind, arm.name, seed, stage, digest, self._data[stage]))

    def _task(self, kind: Kind, arm: Arm, seed: int, stage: str, settings: Settings, start: Task | None) -> Task:
        key = (kind, arm.name, seed, stage, repr(settings), None if start is None else start.folder)
        if key not in self._tasks:
            self._tasks[key] = self._new_task(kind, arm, seed, stage, settings, start)
        return self._tasks[key]

    def _new_task(self, kind: Kind, arm: Arm, seed: int, stage: str, settings: Settings, start: Task | None) -> Task:
        plan = self._plan
        recipe = stage_recipe(plan, arm, stage, seed, settings, is_trial=kind == "trial")
        digest = recipe_digest(recipe, None if start is None else start.recipe_digest)
        showcase, num_captions = showcase_of(plan, stage)
        return Task(
            kind=kind,
            arm=arm.name,
            seed=seed,
            stage=stage,
            recipe=recipe,
            settings=settings_of(recipe, settings),
            recipe_digest=digest,
            data_digest=self._data[stage],
            start_data_digest=None if start is None else start.data_digest,
            folder=self._folder(arm, seed, stage, digest),
            start=None if start is None else start.folder,
            showcase=showcase,
            num_captions=num_captions,
            without=plan.without if stage == self._stages[0] else (),
            scores_captions=scores_captions(plan),
        )

    def _folder(self, arm: Arm, seed: int, stage: str, digest: str) -> Path:
        """Folder of a run. Another recipe or other data get another folder, so that no stale run is resumed."""
        data = {self._data[self._stages[0]], self._data[stage]}
        return self._folder_of(arm.name, seed, stage, folder_digest(digest, data))

    def _spent_trials(self, arm: Arm) -> list[Path]:
        """Folders of measured trials: those of pretraining when all tuning of the arm has ended, others at once."""
        done = [(task, row) for stage in self._stages for task, row in self._points(arm, stage) or ()]
        has_ended = all(self._chosen(arm, stage) is not None for stage in self._stages)
        return [task.folder for task, row in done if row is not None and (has_ended or task.stage != self._stages[0])]


def _is_finished(folder: Path | None) -> bool:
    return folder is not None and (folder / FINISHED).exists()
