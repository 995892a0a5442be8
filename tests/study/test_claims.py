"""Run locks: one process holds each run, even if processes are killed, suspended or late."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import no_space_left

from grr_coca.common.errors import UserError
from grr_coca_study import claims as module
from grr_coca_study.claims import RunLocks


@pytest.fixture
def pass_time(monkeypatch):
    """Call this with seconds, and they have passed. Files are touched by the clock of the disk, which goes on."""
    now = [1000.0]
    # Of this module alone: a server that another test runs in this process reads the same clock.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def passed(seconds: float) -> None:
        time.sleep(0.02)  # else a file that is touched twice may have one time
        now[0] += seconds

    return passed


@pytest.fixture
def elsewhere(monkeypatch):
    """Call this before a claim, and it is one of another machine; after it, this is the machine again."""

    def switch(name: str) -> None:
        monkeypatch.setattr(module, "_machine", lambda: name)

    return switch


def test_run_is_locked_until_released_or_finished(tmp_path):
    (tmp_path / ".run.claim-7~").write_bytes(b"a backup, which claims nothing")
    first, second = RunLocks(tmp_path), RunLocks(tmp_path)
    claim = first.acquire("run")
    assert claim is not None
    assert (claim.number, claim.is_held) == (0, True)
    assert second.acquire("run") is None
    assert first.acquire("run") is None, "it has it already"
    assert second.acquire("other") is not None
    first.release_all()
    taken = second.acquire("run")
    assert taken is not None
    assert not claim.is_held
    second.end(taken)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.claim-0", ".run.claim-7~"]


def test_stale_lock_is_taken_over_and_its_holder_notices(tmp_path, elsewhere, pass_time):
    elsewhere("there")
    sleeping = RunLocks(tmp_path)
    lost = sleeping.acquire("run")
    elsewhere("here")
    here = RunLocks(tmp_path)
    assert here.acquire("run") is None, "seen for the first time"
    pass_time(600)
    assert here.acquire("run") is None
    pass_time(1)
    taken = here.acquire("run")
    assert taken is not None
    assert (lost.is_held, taken.is_held) == (False, True)
    sleeping.renew()
    lost.register()
    assert not lost.is_held, "what it does to its own claim changes nothing"
    sleeping.release(lost)
    assert RunLocks(tmp_path).acquire("run") is None


def test_lock_of_an_active_process_is_never_taken_over(tmp_path, elsewhere, pass_time):
    elsewhere("there")
    working = RunLocks(tmp_path, renewed_every=2.0, free_after=5.0)
    working.acquire("run")
    elsewhere("here")
    looking = RunLocks(tmp_path, renewed_every=2.0, free_after=5.0)
    for _ in range(10):
        pass_time(2.5)
        working.renew()
        assert looking.acquire("run") is None
    pass_time(5.5)
    assert looking.acquire("run") is not None, "the last sign of life is too long ago"


def test_only_one_of_many_takes_over_a_lock(tmp_path, elsewhere):
    """Each has seen the old claim, and tries to take it over when the others may have done so."""
    elsewhere("there")
    RunLocks(tmp_path).acquire("run")
    elsewhere("here")
    takers = [RunLocks(tmp_path, free_after=0.0) for _ in range(8)]
    assert not any(taker.acquire("run") for taker in takers), "seen for the first time"
    time.sleep(0.01)
    start, taken = threading.Barrier(len(takers)), []

    def acquire(taker: RunLocks) -> None:
        start.wait()
        taken.append(taker.acquire("run"))

    threads = [threading.Thread(target=acquire, args=(taker,)) for taker in takers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([claim for claim in taken if claim is not None]) == 1


HOLD = """
import sys, pathlib
from grr_coca_study.claims import RunLocks
print(RunLocks(pathlib.Path(sys.argv[1])).acquire("run") is not None, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="there, nobody can look for a process without ending it")
def test_lock_of_a_killed_local_process_is_free_immediately(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        claims = RunLocks(tmp_path)
        assert claims.acquire("run") is None
        other.kill()
    assert claims.acquire("run") is not None


def test_process_of_another_user_holds_its_lock(tmp_path, monkeypatch):
    """Root may signal every process, so the answer of the system is made here."""
    (tmp_path / ".run.claim-0").write_text(json.dumps({"machine": module._machine(), "processes": [os.getppid()]}))

    def refuse(process, number):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "kill", refuse)
    assert RunLocks(tmp_path).acquire("run") is None


def test_run_that_has_just_ended_is_not_locked(tmp_path, monkeypatch):
    """Its claim is gone between two looks."""
    (tmp_path / ".run.claim-0").write_bytes(b"{}")
    read = Path.read_bytes

    def late(path):
        path.unlink()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", late)
    assert RunLocks(tmp_path).acquire("run") is None


def test_full_disk_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module.Claim, "write", no_space_left)
    with pytest.raises(UserError, match=r"\.run\.claim-0: cannot be written \(No space left on device\)"):
        RunLocks(tmp_path).acquire("run")


def test_lock_is_held_while_a_process_of_the_run_lives(tmp_path, elsewhere):
    """The one that gives the signs of life, and the one that trains: its parent may be killed before it."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    claim = RunLocks(tmp_path).acquire("run")
    content = json.dumps({**json.loads(claim.path.read_text()), "processes": [gone.pid]})
    claim.path.write_text(content)
    claim.register()
    assert RunLocks(tmp_path).acquire("run") is None
    claim.path.write_text(content)
    elsewhere("there")  # where a process of the same number may run
    assert RunLocks(tmp_path).acquire("run") is None
    elsewhere(json.loads(content)["machine"])
    assert RunLocks(tmp_path).acquire("run") is not None


def test_incomplete_lock_is_valid_until_it_expires(tmp_path, pass_time):
    (tmp_path / ".run.claim-0").touch()  # killed between making the file and writing to it
    claims = RunLocks(tmp_path)
    assert claims.acquire("run") is None
    pass_time(601)
    assert claims.acquire("run") is not None
