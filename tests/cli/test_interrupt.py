"""Ctrl-C at any moment: one line, no traceback, exit code 130. A reader of the output that goes away: not a word."""

import os
import subprocess
import sys

import pytest

INTERRUPTED_AT = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
runpy.run_module("grr_coca", run_name="__main__")
"""
INTERRUPTED_AFTERWARDS = """
import atexit, os, runpy, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)
runpy.run_module("grr_coca", run_name="__main__")
"""


def answer(code: str, arguments: list, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


@pytest.mark.parametrize("module", ["grr_coca.errors", "tyro", "PIL.Image", "torch.nn", "grr_coca.generate.captions"])
def test_an_interrupt_while_something_is_imported_is_one_line(run, image_files, tmp_path, module):
    arguments = ["caption", *image_files, "-c", run.folder]
    said = answer(INTERRUPTED_AT.format(module=module), arguments, tmp_path)
    assert (said.returncode, said.stdout, said.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_after_the_work_changes_nothing(tmp_path):
    said = answer(INTERRUPTED_AFTERWARDS, ["info", "grr_coc"], tmp_path)
    assert said.returncode == 2
    assert said.stderr == "error: there is no preset 'grr_coc'; did you mean 'grr_coca'?\n"


@pytest.mark.parametrize("arguments", [["info", "--help"], ["models"]])
def test_a_reader_that_takes_no_more_ends_it_without_a_word(arguments):
    read, write = os.pipe()
    os.close(read)  # as `| head` leaves it
    command = [sys.executable, "-m", "grr_coca", *arguments]
    said = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (said.returncode, said.stderr) == (141, "")
