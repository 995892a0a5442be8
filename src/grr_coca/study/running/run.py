"""Runs what the ledger of a study lacks."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from grr_coca.errors import DiskError, UserError
from grr_coca.structure import to_dict
from grr_coca.study.ledger import (
    LEDGER_FILE,
    PLAN_FILE,
    SHARD_FILE,
    LedgerRow,
    LedgerWriter,
    is_locked,
    ledger_files,
    read_digests,
    read_rows,
    write_beside_ledger,
    write_digests,
)
from grr_coca.study.plan import Plan, lacking_scores, read_plan
from grr_coca.study.running.agenda import Agenda, StudyPart, Task
from grr_coca.study.running.measured import write_showcase
from grr_coca.study.running.stage import code_commit, run_stage
from grr_coca.study.running.workers import Workers, outcome, tell_progress, usable_device, worker_processes

Identity = tuple[str, str, int, str, str, str, str | None]
"""What tells a run from every other one."""

WRITTEN = "# Written by grr-coca study run."
"""Begins a plan that no person wrote."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a study lies: `out` has its ledger, `runs` the models in training. `keeps_models`: they stay there when
    their rows are written."""

    out: Path
    runs: Path
    keeps_models: bool

    def folder_of(self, arm: str, seed: int, stage: str, digest: str) -> Path:
        """Of a run. A recipe or data that were changed have a folder of their own."""
        return self.runs / arm / f"seed-{seed}" / f"{stage}-{digest[:8]}"


def run_study(plan: Plan, place: Place, part: StudyPart, num_jobs: int, watch: "Watch") -> None:
    """Run all that can be run of a part of a study, or go on with it.

    Raises:
        UserError: a run failed, the disk is full, or another process has the ledger; what was done is in it.
        Stopped: SIGTERM came; all runs are saved.
    """
    with taken_ledger(place.out, part) as ledger, worker_processes(num_jobs) as workers:
        study = Study(plan, place, part, ledger)
        study.run(workers, watch)


class Watch:
    """Is told of what happens; does nothing by itself."""

    def begins(self, agenda: Agenda) -> None:
        """The study begins, or goes on, with this left to do."""

    def step(self, task: Task, done: int) -> None:
        """So many steps of a task are done."""

    def row(self, row: LedgerRow) -> None:
        """A row was written."""

    def note(self, text: str) -> None:
        """Something that a person should know of the ledger."""


class Study:
    """A study in progress, in the process that has its ledger."""

    def __init__(self, plan: Plan, place: Place, part: StudyPart, ledger: LedgerWriter) -> None:
        self._place = place
        self._ledger = ledger
        self._known: set[Identity] = set()
        self._plan = plan
        self._part = part
        self.agenda = Agenda(plan, part, place.folder_of, ())
        write_plan(plan, place.out)
        self._notes = [*ledger.notes, *self._read()]
        write_digests(place.out, self.agenda.digests)
        write_showcase(plan, place.out)

    def run(self, workers: Workers, watch: Watch) -> None:
        """Until nothing is left that can be done.

        Raises:
            UserError: a run failed, or what is left waits for others.
        """
        running: dict[Future[LedgerRow], Task] = {}
        names: dict[str, Task] = {}
        for note in self._notes:
            watch.note(note)
        watch.begins(self.agenda)
        while True:
            if len(running) < workers.count:
                self._write_choices(watch)
                free = [task for task in self.agenda.open_tasks() if task.name not in names]
                for task in free[: workers.count - len(running)]:
                    running[workers.submit(_in_worker, task)] = names[task.name] = task
            if not running:
                break
            while not any(future.done() for future in running):
                workers.listen(lambda name, done: watch.step(names[name], done) if name in names else None)
            for future in [future for future in running if future.done()]:
                task = running.pop(future)
                try:
                    row = outcome(future)
                except DiskError as error:
                    raise UserError(
                        f"{task.name}: {error}; make room there, or move the folder {self._place.runs} to another disk "
                        "and name it by --runs; the same command then goes on from what was saved"
                    ) from error
                del names[task.name]
                self._take(row, watch)
        waiting = sum(self.agenda.lacking().values())
        if waiting:
            raise UserError(
                f"{waiting} runs of this part wait for settings that other arms or shards are still tuning; when these "
                "have ended, give the same command again"
            )

    def _take(self, row: LedgerRow, watch: Watch) -> None:
        # A model that was lost is trained again, its row stays, and decides. A choice may be made again after another.
        if row.kind == "choice" or _identity(row) not in self._known:
            self._ledger.append(row)
            self._note(row)
        if not self._place.keeps_models:
            for folder in self.agenda.spent_folders(row):
                shutil.rmtree(folder, ignore_errors=True)
        watch.row(row)

    def _write_choices(self, watch: Watch) -> None:
        if self._part.num_shards > 1:  # others tune arms whose settings this one needs, and writes to `digests.json`
            self._read_news()
        for row in self.agenda.lacking_choices():
            self._take(row, watch)
        if self.agenda.digests != read_digests(self._place.out):
            write_digests(self._place.out, self.agenda.digests)

    def _read(self) -> list[str]:
        """Take note of all rows that are there; returns what is wrong with the ledgers."""
        notes: list[str] = []
        for row in read_rows(self._place.out, notes):
            if not lacking_scores(self._plan, row):  # else its run is done again, and has a row of its own
                self._note(row)
        return notes

    def _read_news(self) -> None:
        """Take note of what other shards have done meanwhile."""
        for row in read_rows(self._place.out, []):
            if _identity(row) not in self._known and not lacking_scores(self._plan, row):
                self._note(row)

    def _note(self, row: LedgerRow) -> None:
        self.agenda.add(row)
        self._known.add(_identity(row))


def write_plan(plan: Plan, out: Path) -> None:
    """Write the plan beside the ledger, for the report, unless it is there.

    Raises:
        UserError: another plan is there that a person wrote.
    """
    path = out / PLAN_FILE
    if path.exists() and read_plan(path, type(plan)) == plan:
        return
    if path.exists() and not path.read_text(encoding="utf-8").startswith(WRITTEN):
        raise UserError(f"{path}: is another plan than the one to run; give another --out")
    content, folder = to_dict(plan), out.resolve()  # as `read_plan` looks from there
    content["pretrain"] = os.path.relpath(plan.pretrain, folder)
    content["finetune"] = [os.path.relpath(recipe, folder) for recipe in plan.finetune]
    for arm in content["arms"]:
        if arm["recipes"] is not None:
            arm["recipes"] = os.path.relpath(arm["recipes"], folder)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_beside_ledger(path, f"{WRITTEN}\n{text}")


@contextmanager
def taken_ledger(out: Path, part: StudyPart) -> Iterator[LedgerWriter]:
    """The ledger of a part, which no other process has, and whose runs no other process does.

    Raises:
        UserError: another process does.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}); give another --out") from error
    name = LEDGER_FILE if part.num_shards == 1 else f"runs-{part.shard}-of-{part.num_shards}.jsonl"
    for path in ledger_files(out):
        other = SHARD_FILE.fullmatch(path.name)
        is_of_other_cut = (int(other[2]) if other else 1) != part.num_shards
        if is_of_other_cut and is_locked(path):
            raise UserError(
                f"{path}: another process is running this study in another number of shards, so that both would do the "
                "same runs; wait until it has ended, or give every process the same N in --shard I/N"
            )
    with LedgerWriter(out / name) as ledger:
        yield ledger


def _in_worker(task: Task) -> LedgerRow:
    code_commit()  # asked now, and kept: a commit that comes while this runs is not what runs
    return run_stage(task, usable_device(), partial(tell_progress, task.name))


def _identity(row: LedgerRow) -> Identity:
    return (row.kind, row.arm, row.seed, row.stage, row.recipe_digest, row.data_digest, row.start_data_digest)
