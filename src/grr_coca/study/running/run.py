"""Runs a study: starts the tasks whose rows are missing, and writes their rows.

Any number of processes can do so in one folder. Each claims a task before it starts it, and looks for the rows of the
others.
"""

import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import yaml

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import DiskError, UserError
from grr_coca.study.claims import FREE_AFTER, RENEWED_EVERY, Claim, Claims
from grr_coca.study.ledger import Digests, read_digests, write_digests
from grr_coca.study.plan import PLAN_FILE, Plan, point_title, read_plan, refuse_earlier_ledger
from grr_coca.study.rows import LedgerRow, RowFolder, write_to_study
from grr_coca.study.running.agenda import Agenda, Task
from grr_coca.study.running.measured import write_showcase
from grr_coca.study.running.stage import code_commit, run_stage
from grr_coca.study.running.workers import Workers, outcome, tell_progress, usable_device, worker_processes

_WRITTEN = "# Written by grr-coca study run."
"""First line of a plan that was written by the program."""
_SECONDS_BETWEEN_LOOKS = 2.0
"""How often a process without work looks for what others have finished or left."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folders of a study: `out` has the rows, `runs` the models in training. `keeps_models`: keep the models when
    their rows have been written."""

    out: Path
    runs: Path
    keeps_models: bool

    def folder_of(self, arm: str, seed: int, stage: str, digest: str) -> Path:
        """Folder of a run; a changed recipe or changed data get another folder."""
        return self.runs / arm / f"seed-{seed}" / f"{stage}-{digest[:8]}"


def run_study(
    plan: Plan,
    place: Place,
    num_jobs: int,
    watch: "Watch",
    arms: Iterable[str] | None = None,
    renewed_every: float = RENEWED_EVERY,
    free_after: float = FREE_AFTER,
) -> None:
    """Run a study, or continue it, alone or beside other processes.

    Args:
        plan: the study.
        place: its folders. Processes that share `out` should share `runs`, too: else a model that one has pretrained is
            trained again where another fine-tunes it.
        num_jobs: number of runs at a time.
        watch: is told of the progress.
        arms: run only these; None: all.
        renewed_every: seconds between two signs of life for other processes, see `claims`.
        free_after: seconds without one, after which a run of another process is taken over.

    Raises:
        UserError: a run failed, or the disk is full. The rows of finished runs are written.
        Stopped: SIGTERM came; all runs are saved.
    """
    study = Study(plan, place, arms, renewed_every, free_after)
    with worker_processes(num_jobs) as workers:
        study.run(workers, watch)


class Watch:
    """Callbacks on the progress of a study; the base class does nothing."""

    def left(self, agenda: Agenda) -> None:
        """The study starts, or rows have come in: this is left."""

    def step(self, task: Task, done: int) -> None:
        """A task has finished `done` steps."""

    def row(self, row: LedgerRow) -> None:
        """A task of this process has ended with this row."""

    def note(self, text: str) -> None:
        """A sentence that the user should read."""


class _TakenOverError(Exception):
    """Another process has taken a run over, since this one gave no sign of life."""


class Study:
    """A study in progress, in one of the processes that run it.

    Raises:
        UserError: the folder cannot be written to, or has another study.
    """

    def __init__(
        self,
        plan: Plan,
        place: Place,
        arms: Iterable[str] | None = None,
        renewed_every: float = RENEWED_EVERY,
        free_after: float = FREE_AFTER,
    ) -> None:
        self._place = place
        self._files = RowFolder(place.out)
        refuse_earlier_ledger(place.out)
        try:
            self._files.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{place.out}: cannot be written to ({error.strerror}); give another --out") from error
        write_plan(plan, place.out)
        self._claims = Claims(self._files.path, renewed_every, free_after)
        self._chosen: dict[tuple[str, str], object] = {}
        self.agenda = Agenda(plan, place.folder_of, arms=arms)
        self._look(Watch())
        write_showcase(plan, place.out)

    def run(self, workers: Workers, watch: Watch) -> None:
        """Run tasks until none is left, here or elsewhere.

        Raises:
            UserError: a run failed, an arm diverged at every point of its grid, or runs are left that wait for the
                tuning of other arms.
        """
        running: dict[Future[LedgerRow], tuple[Task, Claim]] = {}
        titles: dict[str, Task] = {}
        workers.at_end.callback(self._claims.give_back_all)
        for note in self._files.notes.values():
            watch.note(note)
        self._look(watch)
        next_look, is_waiting = 0.0, False
        while True:
            if len(running) < workers.count and time.monotonic() >= next_look:
                for task, claim in self._claimed(workers.count - len(running), watch):
                    running[workers.submit(_in_worker, task, claim, self._claims.renewed_every)] = task, claim
                    titles[task.name] = task
                next_look = time.monotonic() + min(_SECONDS_BETWEEN_LOOKS, self._claims.renewed_every)
            if not running:
                if not self.agenda.open_tasks():
                    break
                if not is_waiting:
                    watch.note("other processes do all that is left; this one waits, in case one of them dies")
                is_waiting = True
                time.sleep(max(0.0, next_look - time.monotonic()))
            while running and not any(future.done() for future in running):
                workers.listen(lambda name, done: watch.step(titles[name], done) if name in titles else None)
                self._claims.renew()
                if len(running) < workers.count and time.monotonic() >= next_look:
                    break
            for future in [future for future in running if future.done()]:
                self._take(future, *running.pop(future), watch)
                next_look = 0.0
        self.agenda.require_sound_points()
        waiting = sum(self.agenda.lacking().values())
        if waiting:
            raise UserError(
                f"{waiting} runs wait for settings that other arms are still tuning; repeat the command when these "
                "have ended"
            )

    def _claimed(self, count: int, watch: Watch) -> list[tuple[Task, Claim]]:
        """Up to `count` tasks that can start, with their claims."""
        self._look(watch)
        found: list[tuple[Task, Claim]] = []
        for task in self.agenda.open_tasks():
            if len(found) == count:
                break
            claim = self._claims.take(task.name)
            if claim is None:
                continue
            self._look(watch)  # another process may have ended the task since
            if any(task.name == other.name for other in self.agenda.open_tasks()):
                found.append((task, claim))
            else:
                self._claims.end(claim)
        return found

    def _take(self, future: Future[LedgerRow], task: Task, claim: Claim, watch: Watch) -> None:
        """Write the row of a task that has ended."""
        try:
            row = outcome(future)
        except (_TakenOverError, UserError) as error:
            if not claim.is_held:  # the other process works in the same folder
                self._claims.give_back(claim)
                watch.note(f"{task.title}: another process goes on with it, since this one gave no sign of life")
                return
            if not isinstance(error, DiskError):
                raise
            raise UserError(
                f"{task.title}: {error}; free some space, or move the folder {self._place.runs} to another disk "
                "and give it as --runs; the same command then continues from what was saved"
            ) from error
        first = self._files.publish(task.name, row)  # of a model that was lost and trained again, the first row stays
        self._claims.end(claim)
        self.agenda.add(first, is_new=True)
        watch.row(row)
        self._look(watch)
        self._remove_spent([row])  # the model was made again, and its row is an old one

    def _look(self, watch: Watch) -> None:
        """Count the rows that are new, of this process and of others, and do what follows from them."""
        new = self._files.new_rows()
        for row in new:
            self.agenda.add(row)
        self._remove_spent(new)
        if self.agenda.digests != self._written_digests():
            write_digests(self._place.out, self.agenda.digests)
        chosen = self.agenda.choices()
        for (arm, stage), settings in chosen.items():
            if self._chosen.get((arm, stage)) != settings:
                watch.note(f"chosen for {arm}, {stage}: {point_title(settings)}")
        self._chosen |= chosen
        watch.left(self.agenda)

    def _written_digests(self) -> Digests | None:
        """The digests that this process or another has written; None if they are missing or damaged."""
        try:
            return read_digests(self._place.out)
        except UserError:
            return None

    def _remove_spent(self, rows: Iterable[LedgerRow]) -> None:
        if not self._place.keeps_models:
            for folder in {folder for row in rows for folder in self.agenda.spent_folders(row)}:
                shutil.rmtree(folder, ignore_errors=True)


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
    write_to_study(path, f"{_WRITTEN}\n{text}")


def _in_worker(task: Task, claim: Claim, seconds_between_looks: float) -> LedgerRow:
    """Run a task in a worker process. It ends when the task was taken over."""
    code_commit()  # cached before the run: a later commit is not the code that runs
    claim.sign()
    looked = time.monotonic()

    def tell(done: int) -> None:
        nonlocal looked
        if time.monotonic() - looked > seconds_between_looks:
            looked = time.monotonic()
            if not claim.is_held:
                raise _TakenOverError
        tell_progress(task.name, done)

    return run_stage(task, usable_device(), tell)
