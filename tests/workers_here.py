"""The processes of a study or a demo, played by the test's own: each of theirs takes seconds to start."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from typing import Any

import pytest

from grr_coca.study.running import workers as processes
from grr_coca.study.running.workers import Workers


class PoolHere:
    """A pool that does each call at once. `interrupt` is a function's name: Ctrl-C comes after its first call."""

    def __init__(self, interrupt: str | None) -> None:
        self.interrupt = interrupt
        self.is_interrupted = False

    def submit(self, work: Callable[..., Any], function: Callable[..., Any], *arguments: Any) -> Future:
        """The result of the call, or its error."""
        if self.is_interrupted:
            raise KeyboardInterrupt
        self.is_interrupted = function.__name__ == self.interrupt
        future: Future = Future()
        try:
            future.set_result(work(function, *arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def work_here(patches: pytest.MonkeyPatch, interrupt: str | None = None) -> None:
    """From now on, studies and demos that start processes work here."""

    @contextmanager
    def worker_processes(count: int) -> Iterator[Workers]:
        held, lifeline = Pipe(duplex=False)
        with held, lifeline, ExitStack() as at_end:
            yield Workers(PoolHere(interrupt), progress, lifeline, count, at_end)  # type: ignore[arg-type]

    progress: queue.Queue = queue.Queue()
    patches.setattr(processes, "_channel", (progress, threading.Event()))
    for module in ("workers", "run"):
        patches.setattr(f"grr_coca.study.running.{module}.worker_processes", worker_processes)
