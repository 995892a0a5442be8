"""What a study still lacks, and which of it can be done now: a function of the plan and of the rows that are there.

One stage of a study for one arm and seed: all that a process must know to run it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from grr_coca.errors import UserError
from grr_coca.study.ledger import Digests, Kind, LedgerRow
from grr_coca.study.plan import (
    LOSS_METRICS,
    Arm,
    Plan,
    Tuning,
    Variant,
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
    """`recipe` with every setting, `variant`: what is changed in the model, `folder` of the run, `start`: the folder of
    the run that this one goes on from.

    `start_data_digest`: of the data of that run.
    `showcase`: the test split that examples are taken from, `num_captions` of them; `without`: see `Plan`;
    `scores_captions`: whether the test splits are captioned.
    """

    kind: Kind
    arm: str
    seed: int
    stage: str
    recipe: Recipe
    variant: Variant | None
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
        """As people are told of it."""
        tried = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.settings.items())
        return f"{self.arm}, {self.stage}, " + (f"trial of {tried}" if self.kind == "trial" else f"seed {self.seed}")


FINISHED = "finished"
"""A file that says that a run's folder holds its last checkpoint, and that it was measured."""


def is_finished(folder: Path | None) -> bool:
    """Whether the run of a folder has ended."""
    return folder is not None and (folder / FINISHED).exists()


LEAST = 1e-30
"""Stands in for a loss of exactly zero, which has no logarithm."""

FolderOf = Callable[[str, int, str, str], Path]
"""The folder of a run, by arm, seed, stage and digest."""


Want = tuple[Kind, str, str]
"""A kind of row, of an arm in a stage."""


class StudyPart(NamedTuple):
    """The share of a study that one process does: the arms by name, and shard `shard` of `num_shards`, from 1."""

    arms: tuple[str, ...]
    shard: int = 1
    num_shards: int = 1

    def has(self, index: int) -> bool:
        """Whether the thing of this number is in this shard."""
        return index % self.num_shards == self.shard - 1


class Agenda:
    """Knows the plan and all rows; says what can be done next."""

    def __init__(self, plan: Plan, part: StudyPart, folder_of: FolderOf, rows: Iterable[LedgerRow]) -> None:
        self._plan = plan
        self._part = part
        self._folder_of = folder_of
        self._stages = stage_names(plan)
        first = plan.arms[0]
        self._data = {stage: data_digest(stage_recipe(plan, first, stage, 0, {})) for stage in self._stages}
        self._rows: dict[tuple[Kind, str, int, str, str, str], LedgerRow] = {}
        self._newest_choices: dict[tuple[str, str], tuple[int, str, str]] = {}
        # Asked for again and again, each by way of others: worked out anew, they would keep the process busy that feeds
        # the workers. A task follows from the plan alone, a choice from the rows as well.
        self._tasks: dict[tuple[str | int | Path | None, ...], Task] = {}
        self._choices: dict[tuple[str, str], Settings | None] = {}
        for row in rows:
            self.add(row)

    def add(self, row: LedgerRow) -> None:
        """Take note of a row that is in the ledger."""
        if row.start_data_digest not in (None, self._data[self._stages[0]]):
            return  # fine-tuned from a model of other data
        key = (row.kind, row.arm, row.seed, row.stage, row.recipe_digest, row.data_digest)
        self._rows[key] = row
        self._choices.clear()
        if row.kind == "choice":
            self._newest_choices[row.arm, row.stage] = (row.seed, row.recipe_digest, row.data_digest)

    @property
    def digests(self) -> Digests:
        """What rows must be made of to count, as far as tuning has come."""
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
        """A row for each choice that the trials allow, and that is not the newest in the ledger: the trial with these
        settings."""
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
        """All that can be done now, in the order in which it should be: tuning, then run after run, by seed."""
        tasks = [task for index, arm in enumerate(self._plan.arms) for task in self._open_trials(index, arm)]
        for place, seed in enumerate(self._plan.seeds):
            for index, arm in enumerate(self._plan.arms):
                if arm in self._arms and self._part.has(place * len(self._plan.arms) + index):
                    tasks += self._open_stages(arm, seed)
        return tasks

    def lacking(self) -> Counter[Want]:
        """How many trials and runs of each arm and stage this part has to do. A pretraining whose model was lost
        counts, although its row is there, if others start from it."""
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
        """Folders of runs that no run to come will need, now that a row is in the ledger."""
        arm = arm_named(self._plan, row.arm)
        if row.kind == "trial":
            tried = [arm_named(self._plan, name) for name in self._tuning.arms] or [arm]  # the last one ends all tuning
            return [folder for each in tried for folder in self._spent_trials(each)]
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
        if points is None:  # what they start from has not been chosen
            return len(grid_of(self._plan, stage))
        return sum(row is None for _, row in points)

    def _points(self, arm: Arm, stage: str) -> list[tuple[Task, LedgerRow | None]] | None:
        """The trials of a grid with their rows; None where what they start from has not been chosen. Where there is
        nothing to choose, there are none."""
        grid = grid_of(self._plan, stage)
        if len(grid) == 1 or arm.name not in (self._tuning.arms or [arm.name]):
            return []
        start = None if stage == self._stages[0] else self._pretraining("trial", arm, self._tuning.seed)
        if stage != self._stages[0] and start is None:
            return None
        tasks = [self._task("trial", arm, self._tuning.seed, stage, settings, start) for settings in grid]
        return [(task, self._find("trial", arm, task.seed, stage, task.recipe_digest)) for task in tasks]

    @property
    def _tuning(self) -> Tuning:
        assert self._plan.tuning is not None, "without tuning, there is nothing to choose"
        return self._plan.tuning

    def _trial_digests(self, arm: Arm) -> dict[str, tuple[str, ...]]:
        """Of all trials by stage, without stages whose start has not been chosen."""
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
        """Those that can be told now: trials of fine-tuning follow when their start has been chosen."""
        return [task for stage in self._stages for task, row in self._points(arm, stage) or () if row is None]

    def _lost_start(self, tasks: Sequence[Task]) -> Task | None:
        """The trial that others start from, if its row is there but its model is not any more."""
        if all(task.start is None or is_finished(task.start) for task in tasks):
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
        """Whether a row is lacking, or the model of which there is a row was lost and others start from it."""
        if not self._is_done(arm, seed, self._stages[0]):
            return True
        pretraining = self._pretraining("run", arm, seed)
        is_there = pretraining is not None and is_finished(pretraining.folder)
        return not is_there and bool(self._lacking_finetunings(arm, seed))

    def _pretraining(self, kind: Kind, arm: Arm, seed: int) -> Task | None:
        """Of an arm with the settings that were chosen; None where they have not been."""
        settings = self._chosen(arm, self._stages[0])
        return None if settings is None else self._task(kind, arm, seed, self._stages[0], settings, None)

    def _is_done(self, arm: Arm, seed: int, stage: str) -> bool:
        """Whether a run was measured, or never can be: it diverged, or the pretraining that it starts from did."""
        stages = (self._stages[0], stage)
        return self._has("run", arm, seed, stage) or any(self._has_diverged(arm, seed, each) for each in stages)

    def _has_diverged(self, arm: Arm, seed: int, stage: str) -> bool:
        return self._has("diverged", arm, seed, stage) and not self._has("run", arm, seed, stage)

    def _has(self, kind: Kind, arm: Arm, seed: int, stage: str) -> bool:
        digest = self._digest(arm, stage)
        return digest is not None and self._find(kind, arm, seed, stage, digest) is not None

    def _chosen(self, arm: Arm, stage: str) -> Settings | None:
        """The settings of a stage; None where the trials have not ended."""
        if (arm.name, stage) not in self._choices:
            self._choices[arm.name, stage] = self._best_of_grid(arm, stage)
        return self._choices[arm.name, stage]

    def _best_of_grid(self, arm: Arm, stage: str) -> Settings | None:
        """Of the grid those settings that are best on average for all arms that are tried, or for the arm itself; of
        equals the first."""
        grid = grid_of(self._plan, stage)
        if len(grid) == 1:
            return grid[0]
        tried = [arm_named(self._plan, name) for name in self._tuning.arms] or [arm]
        columns = [self._badness(each, stage) for each in tried]
        if any(column is None for column in columns):
            return None
        sums = [sum(values) for values in zip(*(column for column in columns if column is not None), strict=True)]
        if math.isinf(min(sums)):
            names = ", ".join(each.name for each in tried)
            raise UserError(f"{names}, {stage}: all trials diverged; give tuning: in the plan lower learning rates")
        return grid[sums.index(min(sums))]

    def _badness(self, arm: Arm, stage: str) -> list[float] | None:
        """How bad each trial of a grid was: the logarithm of its loss, so that arms count alike, or the share that was
        not found. A trial that diverged has no score, and is the worst. None where one is missing."""
        score = self._tuning.metric
        found = []
        for _, row in self._points(arm, stage) or ():
            if row is None:
                return None
            value = row.metrics.get("val", {}).get(score, math.inf if score in LOSS_METRICS else 0.0)
            found.append(math.log(max(value, LEAST)) if score in LOSS_METRICS else -value)
        return found or None

    def _digest(self, arm: Arm, stage: str) -> str | None:
        """Of a run, whatever its seed; None where its settings have not been chosen."""
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
        digest = recipe_digest(recipe, None if start is None else start.recipe_digest, arm.variant)
        showcase, num_captions = showcase_of(plan, stage)
        return Task(
            kind=kind,
            arm=arm.name,
            seed=seed,
            stage=stage,
            recipe=recipe,
            variant=arm.variant,
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
        """Of a run. Other data have another folder, as another recipe has, so that no run goes on from one of these."""
        data = {self._data[self._stages[0]], self._data[stage]}
        return self._folder_of(arm.name, seed, stage, folder_digest(digest, data))

    def _spent_trials(self, arm: Arm) -> list[Path]:
        """Of pretraining trials when all tuning of the arm has ended, of others at once."""
        done = [(task, row) for stage in self._stages for task, row in self._points(arm, stage) or ()]
        has_ended = all(self._chosen(arm, stage) is not None for stage in self._stages)
        return [task.folder for task, row in done if row is not None and (has_ended or task.stage != self._stages[0])]
