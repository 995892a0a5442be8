"""Signals to the processes of a study: each run is saved, whichever process dies."""

import os
import signal
import threading
from pathlib import Path

import pytest

from grr_coca.common.errors import UserError
from grr_coca.study.running.workers import worker_processes
from grr_coca.train.launch import StopSignals


def save_in_spite_of_signals(begun: Path, saved: Path) -> None:
    """Stands in for a run: asked to stop, and then once more, it saves."""
    with StopSignals() as signals:
        begun.open("w").close()
        while not any(signals.counts):
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        saved.touch()


def be_killed_after(begun: Path) -> None:
    begun.open().close()  # a FIFO: it opens when the other end does
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.ci
def test_a_process_without_a_run_outlives_the_signal_that_ends_a_service():
    with worker_processes(1) as workers:
        number = workers.submit(os.getpid).result()
        for _ in range(2):
            os.kill(number, signal.SIGTERM)
        assert workers.submit(os.getpid).result() == number


@pytest.mark.ci
def test_a_run_is_saved_when_the_process_of_another_was_killed(tmp_path):
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    os.mkfifo(begun)
    with worker_processes(2) as workers:
        runs = [workers.submit(save_in_spite_of_signals, begun, saved), workers.submit(be_killed_after, begun)]
        runs.append(workers.submit(os.getpid))  # only from a later call on does the executor surely watch a new process
        with pytest.raises(UserError, match="was killed"):
            workers.all(runs)
    assert saved.exists()
