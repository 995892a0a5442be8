"""Threads for work that may never end, such as reading from a stalled drive."""

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
"""Maximum number of threads that replace stalled threads. Each thread needs memory for its stack."""


class DaemonThreads:
    """Group of threads that process queued work, each one piece at a time. They do not keep the process from ending.

    A thread whose work takes too long is stalled. Another thread is started in its place, so that a stalled drive does
    not delay other files.

    Args:
        count: Number of threads.
        name: Name of the threads.
        seconds: Time after which a thread counts as stalled.
    """

    def __init__(self, count: int, name: str, seconds: float = math.inf) -> None:
        self._count, self._name, self._seconds = count, name, seconds
        self._waiting = SimpleQueue[tuple[Future, Callable[[], Any]] | None]()
        self._lock = threading.Lock()
        # time when each thread began its current work, which is infinite while the thread waits for work
        self._began: dict[threading.Thread, float] = {}
        self._start_missing()

    def put(self, work: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Queue some work, and return its future.

        If the future is canceled before the work starts, the work is skipped.
        """
        future: Future[Result] = Future()
        self._waiting.put((future, partial(work, *arguments)))
        self._start_missing()
        return future

    async def do(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Queue some work, and wait for its result without blocking the event loop. An error of the work is raised."""
        return await asyncio.wrap_future(self.put(work, *arguments))

    @property
    def num_stalled(self) -> int:
        """Number of threads whose current work has already taken longer than `seconds`."""
        with self._lock:
            return self._count_stalled()

    def _count_stalled(self) -> int:
        now = time.monotonic()
        return sum(now - began > self._seconds for began in self._began.values())

    @property
    def _target_count(self) -> int:
        return self._count + min(self._count_stalled(), _MAX_REPLACED)

    def close(self) -> None:
        """Make the threads end after the work that is already queued. This method does not wait for them."""
        for _ in range(self._count + _MAX_REPLACED):
            self._waiting.put(None)

    def _start_missing(self) -> None:
        with self._lock:
            for _ in range(self._target_count - len(self._began)):
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
            del job, future, work  # otherwise, the work and its result would stay in memory until the next work
            with self._lock:
                self._began[this] = math.inf
                if len(self._began) > self._target_count:  # another thread has replaced this one
                    break
        with self._lock:
            del self._began[this]
