"""Threads that wait sleep, unless the user has said otherwise."""

import subprocess
import sys

import pytest

SAID = """
import contextlib, os
import grr_coca
from grr_coca.cli import main
from grr_coca.common.errors import UserError

with contextlib.suppress(UserError):
    {use}
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OPENBLAS_NUM_THREADS"))
"""
VERB, LOAD = "main(['models', '--json'])", "grr_coca.load('nowhere')"
OPEN_CLIP = "grr_coca.load('open_clip:nowhere')"


@pytest.mark.ci
@pytest.mark.parametrize(
    ("use", "given", "expected"),
    [
        (VERB, {}, "PASSIVE 1"),
        (LOAD, {}, "PASSIVE None"),
        (OPEN_CLIP, {}, "PASSIVE None"),
        (VERB, {"GOMP_SPINCOUNT": "9"}, "None 1"),
        (VERB, {"OPENBLAS_NUM_THREADS": "3"}, "PASSIVE 3"),
        (VERB, {"OMP_NUM_THREADS": "2"}, "PASSIVE None"),
    ],
)
def test_waiting_threads_sleep(monkeypatch, use, given, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", SAID.format(use=use)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected
