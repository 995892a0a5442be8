"""How many threads to compute with, and how they wait."""

import os
import sys

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which a user says how threads of OpenMP wait."""


def num_threads() -> int:
    """`OMP_NUM_THREADS`, which PyTorch follows too, or else the number of cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_passively() -> None:
    """Let the threads of PyTorch sleep while they wait for each other. Call this before PyTorch is imported.

    By default they keep their cores busy. Beside another program, captions of 200 drawings then took four times as much
    processor time, and four times as long. A user's own setting stays.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
