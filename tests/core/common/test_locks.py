"""A lock of one process: who waits, who is told, and what is left of it."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from grr_coca.common import locks
from grr_coca.common.locks import LockHeldError, ProcessLock

HOLD = """
import pathlib, sys
from grr_coca.common.locks import ProcessLock
lock = ProcessLock(pathlib.Path(sys.argv[1]), removes=True)
print("held", flush=True)
sys.stdin.read()
"""


def is_held(path) -> bool:
    try:
        ProcessLock(path).release()
    except LockHeldError:
        return True
    return False


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_SHORT_WAIT_SECONDS", 0.02)
    return tmp_path / "a.lock"


@pytest.fixture
def other(path):
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_error_names_the_holding_process(path, other):
    with pytest.raises(LockHeldError) as caught:
        ProcessLock(path)
    assert caught.value.holder == str(other.pid)
    assert not caught.value.is_own_lock
    assert is_held(path)


def test_lock_of_killed_process_is_free(path, other):
    other.kill()
    other.wait()
    assert path.exists()
    assert not is_held(path)
    ProcessLock(path, removes=True).release()
    assert not path.exists()


def test_process_cannot_lock_twice(path):
    lock = ProcessLock(path)
    with pytest.raises(LockHeldError) as caught:
        ProcessLock(path)
    assert caught.value.is_own_lock
    lock.release()
    assert not is_held(path)


def test_deleted_lock_is_free(path):
    ProcessLock(path)
    assert not is_held(path)


def test_waits_while_another_process_checks_the_lock(path, monkeypatch):
    monkeypatch.setattr(locks, "_SHORT_WAIT_SECONDS", 1)
    lock = ProcessLock(path)
    threading.Timer(0.05, lock.release).start()
    ProcessLock(path).release()


def test_file_removed_before_locking_is_not_locked(path, monkeypatch):
    """The holder before has removed it: two processes would hold locks on two files of one name."""
    before = os.open(path, os.O_RDWR | os.O_CREAT)
    opened = os.open

    def late(*arguments, **options):
        monkeypatch.undo()
        path.unlink()
        return before

    monkeypatch.setattr(os, "open", late)
    lock = ProcessLock(path)
    assert os.open is opened
    assert path.exists()
    assert is_held(path)
    lock.release()


def test_file_system_without_locks_raises_and_closes_files(path, monkeypatch):
    def refuse(descriptor, **options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock.lock_descriptor", refuse)
    closed, close = [], os.close
    monkeypatch.setattr(os, "close", lambda descriptor: (closed.append(descriptor), close(descriptor)))
    with pytest.raises(OSError, match="No locks available"):
        ProcessLock(path)
    assert len(closed) == 1
    monkeypatch.undo()
    ProcessLock(path).release()


def test_rejects_a_link_and_keeps_its_target(path, tmp_path):
    (tmp_path / "precious").write_text("words")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        ProcessLock(path)
    assert (tmp_path / "precious").read_text() == "words"
