"""The processes of a study: each run is saved, whichever process dies, and an error is told with its trace."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from grr_coca.common.errors import Interruption, UserError
from grr_coca.common.ranks import StopSignals
from grr_coca_study.running import workers as workers_module
from grr_coca_study.running.workers import raise_if_stopped, report_progress, worker_processes


def save_in_spite_of_signals(begun: Path, saved: Path) -> None:
    """Stands in for a run: after one or two stop requests, it saves."""
    with StopSignals() as signals:
        begun.open("w").close()
        while not any(signals.counts):
            time.sleep(0.01)
            report_progress(1)
        os.kill(os.getpid(), signal.SIGTERM)
        saved.touch()


def be_killed_after(begun: Path) -> None:
    begun.open().close()  # a FIFO: it opens when the other end does
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("a mistake")


@pytest.mark.ci
def test_worker_serves_calls_and_survives_the_signal():
    with worker_processes(1) as workers:
        (number,) = workers.all([workers.submit(os.getpid)])
        for _ in range(2):
            os.kill(number, signal.SIGTERM)
        assert workers.all([workers.submit(os.getpid), workers.submit(os.getpid)]) == [number, number]
        with pytest.raises(ValueError, match="a mistake") as raised:
            workers.all([workers.submit(fail)])
        assert "in fail" in raised.value.__notes__[0]
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize("end", ["parent", "child"])
def test_run_stops_when_its_parent_dies(monkeypatch, end):
    ends = dict(zip(("parent", "child"), multiprocessing.Pipe(), strict=True))
    monkeypatch.setattr(workers_module, "_parent", ends["child"])
    raise_if_stopped()
    ends[end].close()
    with pytest.raises(UserError, match="stopped"):
        raise_if_stopped()


@pytest.mark.ci
@pytest.mark.parametrize("killed", ["worker", "parent's signal"])
def test_run_is_saved_if_another_process_dies(tmp_path, killed):
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    os.mkfifo(begun)
    stopped: list[Exception] = []
    try:
        with worker_processes(2) as workers:
            runs = [workers.submit(save_in_spite_of_signals, begun, saved)]
            if killed == "worker":
                runs.append(workers.submit(be_killed_after, begun))
            else:
                begun.open().close()
                os.kill(os.getpid(), signal.SIGTERM)
            workers.all(runs)
    except (UserError, Interruption) as error:
        stopped.append(error)
    assert ("was killed" if killed == "worker" else "stop requested") in str(stopped)
    assert saved.exists()
