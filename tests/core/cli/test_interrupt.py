"""Ctrl-C at any moment: one line, no traceback, exit code 130. A reader of the output that goes away: not a word.
Output that a disk does not take: one line."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import take_interrupts

import grr_coca.cli
from grr_coca.__main__ import run as run_program

INTERRUPTED_AT = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
runpy.run_module("grr_coca", run_name="__main__")
"""
INTERRUPTED_WITHIN_A_LOCK = """
import os, runpy, signal, threading
import grr_coca.cli

def main():
    lock = threading.Lock()
    with lock:
        lock.release()  # as while `threading.Condition` waits
        os.kill(os.getpid(), signal.SIGINT)

grr_coca.cli.main = main
runpy.run_module("grr_coca", run_name="__main__")
"""
INTERRUPTED_AFTERWARDS = """
import atexit, os, runpy, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)
runpy.run_module("grr_coca", run_name="__main__")
"""


def answer(code: str, arguments: list, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, preexec_fn=take_interrupts)


def test_programs_of_tests_accept_interrupts(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under `nohup … &`
    try:
        result = answer("import os, signal; os.kill(os.getpid(), signal.SIGINT)", [], tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.returncode == -signal.SIGINT


@pytest.mark.ci
@pytest.mark.parametrize("module", ["grr_coca.common.errors", "torch._C"])
def test_interrupt_while_something_is_imported_is_one_line(run, image_files, tmp_path, module):
    arguments = ["caption", *image_files, "-c", run.folder]
    result = answer(INTERRUPTED_AT.format(module=module), arguments, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_interrupt_within_a_lock_is_one_line(tmp_path):
    result = answer(INTERRUPTED_WITHIN_A_LOCK, [], tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_interrupt_after_the_work_changes_nothing(tmp_path):
    result = answer(INTERRUPTED_AFTERWARDS, ["info", "grr_coc"], tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: unknown preset 'grr_coc'; did you mean 'grr_coca'?\n"


def test_closed_output_ends_the_process_without_a_message():
    read, write = os.pipe()
    os.close(read)  # as `| head` leaves it
    command = [sys.executable, "-m", "grr_coca", "models"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(("arguments", "unbuffered"), [(["--help"], ""), (["models"], "1")])
def test_full_disk_for_the_output_reports_one_line(arguments, unbuffered):
    command = [sys.executable, "-m", "grr_coca", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    message = "error: standard output: cannot be written (No space left on device)\n"
    assert (result.returncode, result.stderr) == (2, message)


@pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX closes the streams")
def test_closed_streams_only_suppress_output():
    command = ["sh", "-c", f'"{sys.executable}" -m grr_coca "$@" >&- 2>&-', "sh"]
    assert subprocess.run([*command, "models", "--no-such-flag"], timeout=60).returncode == 2


# --- The same in this process: which errors are of the output, and which are not


class Broken(io.StringIO):
    """Output that takes nothing."""

    def write(self, text):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def process(monkeypatch):
    """This process keeps its signals and its search for garbage, and does not end."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    monkeypatch.setattr(os, "_exit", sys.exit)


@pytest.mark.parametrize(
    ("outcome", "is_broken"),
    [
        (RuntimeError("of a library"), False),
        (BrokenPipeError(), False),
        (OSError(errno.ENOSPC, "no room"), False),
        (OSError(errno.ENOENT, "no such file"), True),
    ],
)
def test_any_other_error_keeps_its_traceback(process, monkeypatch, outcome, is_broken):
    def main():
        raise outcome

    monkeypatch.setattr(os, "_exit", pytest.fail)
    monkeypatch.setattr(grr_coca.cli, "main", main)
    monkeypatch.setattr(sys, "stdout", Broken() if is_broken else io.StringIO())
    with pytest.raises(type(outcome)) as caught:
        run_program()
    assert caught.value is outcome


def test_closed_stream_is_replaced_by_the_null_device(process, monkeypatch):
    monkeypatch.setattr(grr_coca.cli, "main", lambda: print("said") or 0)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit):
        run_program()
    with sys.stdout as nowhere:
        assert nowhere.name == os.devnull
