"""Threads that wait sleep, unless the user has said otherwise."""

import subprocess
import sys

import pytest

SAID = "import os; from grr_coca.cli import main; main(['models', '--json']); print(os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"GOMP_SPINCOUNT": "9"}, "None")])
def test_threads_of_pytorch_sleep_while_they_wait(monkeypatch, given, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected
