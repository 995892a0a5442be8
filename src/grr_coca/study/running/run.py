"""Runs a study: starts the tasks that its ledger lacks, and appends their rows."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import DiskError, UserError
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

_Identity = tuple[str, str, int, str, str, str, str | None]
"""The fields of a row that identify its run."""

_WRITTEN = "# Written by grr-coca study run."
"""First line of a plan that was written by the program."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folders of a study: `out` has the ledger, `runs` the models in training. `keeps_models`: keep the models when
    their rows have been written."""

    out: Path
    runs: Path
    keeps_models: bool

    def folder_of(self, arm: str, seed: int, stage: str, digest: str) -> Path:
        """Folder of a run; a changed recipe or changed data get another folder."""
        return self.runs / arm / f"seed-{seed}" / f"{stage}-{digest[:8]}"


def run_study(plan: Plan, place: Place, part: StudyPart, num_jobs: int, watch: "Watch") -> None:
    """Run a part of a study, or continue it.

    Raises:
        UserError: a run failed, the disk is full, or another process holds the ledger. Finished runs are in the ledger.
        Stopped: SIGTERM came; all runs are saved.
    """
    with taken_ledger(place.out, part) as ledger, worker_processes(num_jobs) as workers:
        study = Study(plan, place, part, ledger)
        study.run(workers, watch)


class Watch:
    """Callbacks on the progress of a study; the base class does nothing."""

    def begins(self, agenda: Agenda) -> None:
        """The study starts or continues, with this agenda."""

    def step(self, task: Task, done: int) -> None:
        """A task has finished `done` steps."""

    def row(self, row: LedgerRow) -> None:
        """A row was appended to the ledger."""

    def note(self, text: str) -> None:
        """A sentence on the ledger that the user should read."""


class Study:
    """A study in progress, in the process that holds its ledger."""

    def __init__(self, plan: Plan, place: Place, part: StudyPart, ledger: LedgerWriter) -> None:
        self._place = place
        self._ledger = ledger
        self._known: set[_Identity] = set()
        self._plan = plan
        self._part = part
        self.agenda = Agenda(plan, part, place.folder_of, ())
        write_plan(plan, place.out)
        self._notes = [*ledger.notes, *self._read()]
        write_digests(place.out, self.agenda.digests)
        write_showcase(plan, place.out)

    def run(self, workers: Workers, watch: Watch) -> None:
        """Run tasks until none can start.

        Raises:
            UserError: a run failed, or runs are left that wait for the tuning of other arms or shards.
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
                        f"{task.name}: {error}; free some space, or move the folder {self._place.runs} to another disk "
                        "and give it as --runs; the same command then continues from what was saved"
                    ) from error
                del names[task.name]
                self._take(row, watch)
        waiting = sum(self.agenda.lacking().values())
        if waiting:
            raise UserError(
                f"{waiting} runs of this part wait for settings that other arms or shards are still tuning; repeat the "
                "command when these have ended"
            )

    def _take(self, row: LedgerRow, watch: Watch) -> None:
        # A lost model is trained again, but its first row stays. A choice may be repeated after another choice.
        if row.kind == "choice" or _identity(row) not in self._known:
            self._ledger.append(row)
            self._note(row)
        if not self._place.keeps_models:
            for folder in self.agenda.spent_folders(row):
                shutil.rmtree(folder, ignore_errors=True)
        watch.row(row)

    def _write_choices(self, watch: Watch) -> None:
        if self._part.num_shards > 1:  # other shards tune arms whose settings this one needs
            self._read_other_shards()
        for row in self.agenda.lacking_choices():
            self._take(row, watch)
        if self.agenda.digests != read_digests(self._place.out):
            write_digests(self._place.out, self.agenda.digests)

    def _read(self) -> list[str]:
        """Count all rows of the ledgers. Returns notes on invalid lines."""
        notes: list[str] = []
        for row in read_rows(self._place.out, notes):
            if not lacking_scores(self._plan, row):  # else its run is repeated, and gets another row
                self._note(row)
        return notes

    def _read_other_shards(self) -> None:
        """Count the rows that other shards have written since."""
        for row in read_rows(self._place.out, []):
            if _identity(row) not in self._known and not lacking_scores(self._plan, row):
                self._note(row)

    def _note(self, row: LedgerRow) -> None:
        self.agenda.add(row)
        self._known.add(_identity(row))


def write_plan(plan: Plan, out: Path) -> None:
    """Write the plan beside the ledger, where a report reads it.

    Raises:
        UserError: the folder has another plan that a person wrote.
    """
    path = out / PLAN_FILE
    if path.exists() and read_plan(path, type(plan)) == plan:
        return
    if path.exists() and not path.read_text(encoding="utf-8").startswith(_WRITTEN):
        raise UserError(f"{path}: differs from the plan to run; give another --out")
    content, folder = to_dict(plan), out.resolve()  # `read_plan` resolves paths from there
    content["pretrain"] = os.path.relpath(plan.pretrain, folder)
    content["finetune"] = [os.path.relpath(recipe, folder) for recipe in plan.finetune]
    for arm in content["arms"]:
        if arm["recipes"] is not None:
            arm["recipes"] = os.path.relpath(arm["recipes"], folder)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_beside_ledger(path, f"{_WRITTEN}\n{text}")


@contextmanager
def taken_ledger(out: Path, part: StudyPart) -> Iterator[LedgerWriter]:
    """Open and lock the ledger of a part of a study.

    Raises:
        UserError: another process holds it, or runs the same study in another number of shards.
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
                "same runs; wait until it has ended, or give all processes the same N in --shard I/N"
            )
    with LedgerWriter(out / name) as ledger:
        yield ledger


def _in_worker(task: Task) -> LedgerRow:
    code_commit()  # cached before the run: a later commit is not the code that runs
    return run_stage(task, usable_device(), partial(tell_progress, task.name))


def _identity(row: LedgerRow) -> _Identity:
    return (row.kind, row.arm, row.seed, row.stage, row.recipe_digest, row.data_digest, row.start_data_digest)
