"""The processes of a study or a demo, played by the test's own: each of theirs takes seconds to start."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from grr_coca_study.running import workers as module
from grr_coca_study.running.workers import Workers


class WorkersHere(Workers):
    """Does each call at once. `interrupt` is a function's name: Ctrl-C comes after its first call."""

    def __init__(self, interrupt: str | None = None) -> None:
        super().__init__(count=1)
        self.interrupt = interrupt
        self.is_interrupted = False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """The result of the call, or its error."""
        if self.is_interrupted:
            raise KeyboardInterrupt
        self.is_interrupted = function.__name__ == self.interrupt
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def process_messages(self, on_progress: object = None) -> None:
        """There is nothing to wait for."""


def work_here(patches: pytest.MonkeyPatch, interrupt: str | None = None) -> None:
    """From now on, studies and demos that start processes work here."""

    @contextmanager
    def worker_processes(count: int) -> Iterator[Workers]:
        yield WorkersHere(interrupt)

    patches.setattr(module, "_parent", SimpleNamespace(poll=lambda: False, send=lambda message: None))
    patches.setattr(module, "worker_processes", worker_processes)
