"""Run a study: start the tasks whose rows are missing, and write their rows.

Any number of processes can do this in the same folder. Each process claims a task before starting it, and checks for
rows of other processes.
"""

import os
import shutil
import time
from collections.abc import Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import DiskError, UserError, count_of
from grr_coca_study.claims import Claim, RunLocks
from grr_coca_study.ledger import read_digests, write_digests
from grr_coca_study.plan import PLAN_FILE, Plan, point_title, read_plan
from grr_coca_study.rows import LedgerRow, RowFolder, write_to_study
from grr_coca_study.running.agenda import RemainingWork, Task
from grr_coca_study.running.measured import write_showcase
from grr_coca_study.running.provenance import code_commit
from grr_coca_study.running.stage import run_stage
from grr_coca_study.running.workers import Workers, report_progress, usable_device

_PLAN_HEADER = "# Written by grr-coca study run."
"""First line of a plan that this program has written."""
_REFRESH_SECONDS = 2.0
"""Interval, in seconds, at which an idle process checks for work that others have finished or abandoned."""


@dataclass(frozen=True, kw_only=True)
class StudyFolders:
    """Folders of a study.

    Processes that share `out` should also share `runs`. Otherwise, a model that one process has pretrained would be
    trained again by another process for fine-tuning.

    Attributes:
        out: Folder of the study, which contains the rows.
        runs: Folder of the models in training.
        keeps_models: Whether to keep models after all runs that need them have rows.
    """

    out: Path
    runs: Path
    keeps_models: bool

    def folder_of(self, arm: str, seed: int, stage: str, digest: str) -> Path:
        """Return the folder of a run. If the recipe or the data change, the folder is a different one."""
        return self.runs / arm / f"seed-{seed}" / f"{stage}-{digest[:8]}"


class ProgressCallbacks:
    """Callbacks for the progress of a study. The base class does nothing."""

    def remaining(self, agenda: RemainingWork) -> None:
        """Report the remaining work, at the start of the study and after new rows."""

    def step(self, task: Task, done: int) -> None:
        """Report that a task has finished `done` steps."""

    def row(self, row: LedgerRow) -> None:
        """Report that a task of this process has ended with the given row."""

    def note(self, text: str) -> None:
        """Report a sentence to the user."""


class _TakenOverError(Exception):
    """Another process has taken over a run, because this process did not renew its claim."""


class Study:
    """Study in progress, in one of its processes. Creating it writes the plan and the thumbnails of the showcase.

    Args:
        plan: The study.
        folders: Folders of the study.
        arms: Arms to run. None means all.

    Raises:
        UserError: If the folder cannot be written to, or contains another study.
    """

    def __init__(self, plan: Plan, folders: StudyFolders, arms: Collection[str] | None = None) -> None:
        self._folders = folders
        self._callbacks = ProgressCallbacks()
        self._files = RowFolder(folders.out)
        try:
            self._files.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folders.out}: cannot be written to ({error.strerror}); pass another --out") from error
        write_plan(plan, folders.out)
        write_showcase(plan, folders.out)
        self._claims = RunLocks(self._files.path)
        self._chosen: dict[tuple[str, str], object] = {}
        self.agenda = RemainingWork(plan, folders.folder_of, arms=arms)  # contains no rows until `run` reads them
        self._running: dict[Future[LedgerRow], tuple[Task, Claim]] = {}

    def run(self, workers: Workers, callbacks: ProgressCallbacks) -> None:
        """Run tasks until no task remains, in this process or others. `callbacks` receives the progress.

        Raises:
            UserError: If a run fails, the disk is full, an arm diverged at every point of its grid, or the remaining
                runs wait for the tuning of other arms. The rows of finished runs are written.
            Interruption: If SIGTERM was received. All runs are saved.
        """
        self._callbacks = callbacks
        try:
            self._run_all(workers)
        except BaseException:
            workers.close()  # all runs are saved before other processes may take them over
            raise
        finally:
            self._claims.release_all()
        self.agenda.require_sound_points()
        waiting = self.agenda.missing_runs().total()
        if waiting:
            raise UserError(
                f"{count_of(waiting, 'run')} left that cannot start before other processes have tuned the settings; "
                "run the command again when those processes have ended"
            )

    def _run_all(self, workers: Workers) -> None:
        self._refresh()
        for note in self._files.notes.values():
            self._callbacks.note(note)
        next_refresh, is_waiting = 0.0, False
        while self._running or self.agenda.open_tasks():
            if len(self._running) < workers.count and time.monotonic() >= next_refresh:
                self._start_tasks(workers)
                next_refresh = time.monotonic() + min(_REFRESH_SECONDS, self._claims.renewed_every)
            if self._running:
                workers.process_messages(lambda future, done: self._callbacks.step(self._running[future][0], done))
                self._claims.renew()
            elif self.agenda.open_tasks():
                if not is_waiting:
                    self._callbacks.note(
                        "other processes are doing all remaining work; this process waits in case one of them fails"
                    )
                is_waiting = True
                time.sleep(max(0.0, next_refresh - time.monotonic()))
            for future in [future for future in self._running if future.done()]:
                self._finish_task(future)
                next_refresh = 0.0

    def _start_tasks(self, workers: Workers) -> None:
        """Start tasks that no other process has claimed, one for each idle worker."""
        self._refresh()
        for task in self.agenda.open_tasks():
            if len(self._running) == workers.count:
                break
            claim = self._claims.acquire(task.name)
            if claim is None:
                continue
            self._refresh()  # another process may have finished the task in the meantime
            if task in self.agenda.open_tasks():
                future = workers.submit(_run_in_worker, task, claim, self._claims.renewed_every)
                self._running[future] = task, claim
            else:
                self._claims.end(claim)

    def _finish_task(self, future: Future[LedgerRow]) -> None:
        """Write the row of a finished task, or release the task if another process has taken it over.

        Raises:
            UserError: If the task failed, or the disk is full.
        """
        task, claim = self._running.pop(future)
        try:
            row = future.result()
        except (_TakenOverError, UserError) as error:
            if not claim.is_held:  # the error may come from the other process, which uses the same folder
                self._claims.release(claim)
                self._callbacks.note(
                    f"{task.title}: another process has taken over this task, because this process did not "
                    "renew its claim"
                )
                return
            if not isinstance(error, DiskError):
                raise
            raise UserError(
                f"{task.title}: {error}; free some space, or move the folder {self._folders.runs} to another disk "
                "and pass it as --runs; then run the same command again to continue"
            ) from error
        first = self._files.publish(task.name, row)  # if a lost model was trained again, the first row is kept
        self._claims.end(claim)
        self.agenda.add(first, is_new=True)
        self._callbacks.row(row)
        self._refresh(has_ended=True)

    def _refresh(self, has_ended: bool = False) -> None:
        """Count new rows of this process and of others, and update everything that depends on them.

        `has_ended` states whether a run has just ended in this process. Its row may be old, if its model was lost and
        trained again.
        """
        new = self._files.new_rows()
        for row in new:
            self.agenda.add(row)
        if (new or has_ended) and not self._folders.keeps_models:
            for folder in self.agenda.disposable_run_folders():
                shutil.rmtree(folder, ignore_errors=True)
        written = None
        with suppress(UserError):  # missing or corrupt
            written = read_digests(self._folders.out)
        if self.agenda.digests != written:
            write_digests(self._folders.out, self.agenda.digests)
        for (arm, stage), settings in self.agenda.choices().items():
            if self._chosen.get((arm, stage)) != settings:
                self._callbacks.note(f"chosen for {arm}, {stage}: {point_title(settings)}")
                self._chosen[arm, stage] = settings
        self._callbacks.remaining(self.agenda)


def write_plan(plan: Plan, out: Path) -> None:
    """Write the plan next to the rows, where a report reads it. An equal plan is kept.

    Raises:
        UserError: If the folder has an invalid plan or a different one that a user has written, or cannot be written
            to.
    """
    path = out / PLAN_FILE
    if path.exists() and read_plan(path, type(plan)) == plan:
        return
    if path.exists() and not path.read_text(encoding="utf-8").startswith(_PLAN_HEADER):
        raise UserError(f"{path}: differs from the plan to run; pass another --out")
    content, folder = to_dict(plan), out.resolve()  # `read_plan` resolves relative paths from there
    content["pretrain"] = os.path.relpath(plan.pretrain, folder)
    content["finetune"] = [os.path.relpath(recipe, folder) for recipe in plan.finetune]
    for arm in content["arms"]:
        if arm["recipes"] is not None:
            arm["recipes"] = os.path.relpath(arm["recipes"], folder)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_to_study(path, f"{_PLAN_HEADER}\n{text}".encode())


def _run_in_worker(task: Task, claim: Claim, seconds_between_checks: float) -> LedgerRow:
    """Run a task in a worker process, and return its row.

    Raises:
        _TakenOverError: If another process takes over the task.
    """
    code_commit()  # cached before the run, because a later commit would not be the code of this run
    claim.register()
    checked = time.monotonic()

    def after_step(done: int) -> None:
        nonlocal checked
        if time.monotonic() - checked > seconds_between_checks:
            checked = time.monotonic()
            if not claim.is_held:
                raise _TakenOverError
        report_progress(done)

    return run_stage(task, usable_device(), after_step)
