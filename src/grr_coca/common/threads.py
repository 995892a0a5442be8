"""How many threads to compute with, how they wait, and how Ctrl-C ends them."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which a user says how threads of OpenMP wait."""


def num_threads() -> int:
    """`OMP_NUM_THREADS`, which PyTorch follows too, or else the number of cores that this process may use: by its
    affinity, and by the limit of its container."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _container_limit(Path("/sys/fs/cgroup"))
    return cores if limit is None else min(cores, max(1, round(limit)))


def _container_limit(groups: Path) -> float | None:
    """The cores whose time a container may use (`docker run --cpus`), by control groups (version 1 or 2). None: all."""
    try:
        if (groups / "cpu.max").exists():
            quota, period = (groups / "cpu.max").read_text().split()
        else:
            quota, period = ((groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None  # no limit: "max", or -1
    except (OSError, ValueError, ZeroDivisionError):
        return None


def was_interrupted(error: BaseException) -> bool:
    """True if Ctrl-C raised an error. Within a lock of `threading`, an interrupt becomes a `RuntimeError` ("release
    unlocked lock"), or leaves the lock closed for ever."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


@contextmanager
def thread_pool(
    count: int | None = None, name: str = "", begin: Callable[[], None] | None = None
) -> Iterator["ThreadPoolExecutor"]:
    """A pool of threads for a block. At its end, work that has not begun is dropped, and the rest is waited for. Ctrl-C
    does not wait: the rest may take seconds, or wait itself for a lock that the interrupt has left closed.

    Args:
        count: the number of threads; None: as many as `ThreadPoolExecutor` chooses.
        name: begins their names.
        begin: called in each thread before its first work.
    """
    from concurrent.futures import ThreadPoolExecutor  # late: most commands need none

    pool = ThreadPoolExecutor(count, name, begin)
    waits = True
    try:
        yield pool
    except BaseException as error:
        waits = not was_interrupted(error)
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)


def wait_passively() -> None:
    """Let the threads of PyTorch sleep while they wait for each other. Call this before PyTorch is imported.

    By default they keep their cores busy. Beside another program, captions of 200 drawings then took four times as much
    processor time, and four times as long. A user's own setting stays.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def multiply_on_one_thread() -> None:
    """Let NumPy compute matrix products on the calling thread alone. Call this before NumPy is imported.

    A search has threads of its own, which otherwise wait for those of OpenBLAS. For the command line alone: in a
    program of somebody else, this would slow down that program's own products. A user's own setting stays.
    """
    if "numpy" not in sys.modules and "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
