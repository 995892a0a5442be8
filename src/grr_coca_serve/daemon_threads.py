"""Threads for work that may never end, such as reading from a drive that hangs."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

_MAX_REPLACED = 8
"""Threads that are started in place of late ones, which take a stack each."""


class DaemonThreads:
    """Some threads that do one piece of work after the other. The end of the process abandons them.

    A thread whose work takes too long is late. Another one is started in its place, so that one drive that hangs does
    not keep the files of others waiting.

    Args:
        count: the number of threads.
        name: of the threads.
        seconds: work that takes longer is late.
    """

    def __init__(self, count: int, name: str, seconds: float = math.inf) -> None:
        self._count, self._name, self._seconds = count, name, seconds
        self._waiting = SimpleQueue[tuple[Future, Callable[[], Any]] | None]()
        self._lock = threading.Lock()
        self._began: dict[threading.Thread, float] = {}  # infinite while a thread waits for work
        self._start_missing()

    def put(self, work: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Do some work after what waits already. If its future is cancelled before it begins, it is left out."""
        future: Future[Result] = Future()
        self._waiting.put((future, partial(work, *arguments)))
        self._start_missing()
        return future

    async def do(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do some work, and wait for its result."""
        return await asyncio.wrap_future(self.put(work, *arguments))

    @property
    def num_late(self) -> int:
        """The number of threads whose work takes too long."""
        with self._lock:
            return self._count_late()

    def _count_late(self) -> int:
        now = time.monotonic()
        return sum(now - began > self._seconds for began in self._began.values())

    @property
    def _num_wanted(self) -> int:
        return self._count + min(self._count_late(), _MAX_REPLACED)

    def close(self) -> None:
        """End each thread after its present work, without waiting for that."""
        for _ in range(self._count + _MAX_REPLACED):
            self._waiting.put(None)

    def _start_missing(self) -> None:
        with self._lock:
            for _ in range(self._num_wanted - len(self._began)):
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._began[thread] = math.inf
                thread.start()

    def _run(self) -> None:
        this = threading.current_thread()
        while (job := self._waiting.get()) is not None:
            future, work = job
            self._began[this] = time.monotonic()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
                    del error
            del job, future, work  # or what they hold would be kept until the next work
            with self._lock:
                self._began[this] = math.inf
                if len(self._began) > self._num_wanted:  # another one has taken its place
                    break
        with self._lock:
            del self._began[this]
