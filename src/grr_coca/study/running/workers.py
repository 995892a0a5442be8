"""Processes that do the work of a study, one core each.

Two threads each would get in each other's way: two such jobs on two cores slow each other tenfold.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any, TypeVar

import torch

from grr_coca.errors import Stopped, UserError, print_warnings

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 0.5

Tell = Callable[[str, int], None]
"""Called with the name of a task and the steps done in it."""

_channel: tuple[Queue, Event] | None = None
_number = 0
_at_work = threading.Lock()
"""Held while a call runs in this process."""


class Workers:
    """A pool of processes, and what they tell of their progress. `lifeline` is closed when the pool is broken."""

    def __init__(self, pool: ProcessPoolExecutor, progress: Queue, lifeline: Connection, count: int) -> None:
        self._pool = pool
        self._progress = progress
        self._lifeline = lifeline
        self.count = count

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Start a call. The processes come into being here, and inherit that Ctrl-C is ignored: it reaches every
        process of a terminal, and the parent sees to the others."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            future = self._pool.submit(_work, function, *arguments)
        finally:
            signal.signal(signal.SIGINT, before)
        future.add_done_callback(self._note_end)
        return future

    def _note_end(self, future: Future) -> None:
        if isinstance(future.exception(), BrokenProcessPool):
            self._lifeline.close()

    def listen(self, tell: Tell) -> None:
        """Pass on one message of a process, if one comes in time."""
        with contextlib.suppress(queue.Empty):
            tell(*self._progress.get(timeout=SECONDS_BETWEEN_LOOKS))

    def all(self, futures: list[Future[T]]) -> list[T]:
        """The results of calls, in their order.

        Raises:
            UserError: a call failed; the others are stopped when the pool ends.
        """
        while not all(future.done() for future in futures):
            for future in futures:
                if future.done():
                    outcome(future)  # an error of one ends all
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return [outcome(future) for future in futures]


def outcome(future: Future[T]) -> T:
    """The result of a call that has ended.

    Raises:
        UserError: it failed, or its process was ended from outside.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "the process of an arm was ended from outside, as a system does that is short of memory; the same command "
            "goes on from what was saved"
        ) from error


@contextlib.contextmanager
def worker_processes(count: int) -> Iterator[Workers]:
    """Processes for tasks. Whatever ends this context asks them to save and stop, and waits until they have.

    Raises:
        Stopped: SIGTERM came; Ctrl-C raises a KeyboardInterrupt as ever.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    progress: Queue = context.Queue()
    stop = context.Event()
    numbers: Queue = context.Queue()
    held, lifeline = context.Pipe(duplex=False)
    for number in range(count):
        numbers.put(number)
    with ProcessPoolExecutor(count, context, initializer=_connect, initargs=(progress, stop, numbers, held)) as pool:
        try:
            yield Workers(pool, progress, lifeline, count)
        finally:
            stop.set()
            signal.signal(signal.SIGTERM, before)


def usable_device() -> torch.device:
    """Where a worker trains: on a GPU of its own, as long as there are enough."""
    return (
        torch.device("cuda", _number % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )


def tell_progress(name: str, done: int) -> None:
    """Of a task, from within its process. If it was asked to stop, its run gets a signal, saves and ends, as at any
    such signal."""
    assert _channel is not None, "in a worker process"
    progress, stop = _channel
    if stop.is_set():
        signal.raise_signal(signal.SIGTERM)
    progress.put((name, done))


def go_on() -> None:
    """Within a worker process.

    Raises:
        UserError: it was asked to stop.
    """
    assert _channel is not None, "in a worker process"
    if _channel[1].is_set():
        raise UserError("stopped")


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Stopped(number, "asked to stop")


def _let_pass(number: int, frame: FrameType | None) -> None:
    """Do nothing at SIGTERM. A service's end sends it to all processes at once: one that died of it would break the
    pool, and the pool sends it once more to all others, which may still be saving."""


def _work(function: Callable[..., T], *arguments: Any) -> T:
    with _at_work:
        return function(*arguments)


def _connect(progress: Queue, stop: Event, numbers: Queue, lifeline: Connection) -> None:
    """Set up a process of the pool."""
    global _channel, _number
    _channel, _number = (progress, stop), numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(usable_device())  # the card that is asked for its name and precisions
    print_warnings()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _let_pass)
    threading.Thread(target=_end_with_pool, args=(lifeline,), daemon=True).start()


def _end_with_pool(lifeline: Connection) -> None:
    """Wait for the end of the process that shows the progress: nobody needs the workers of a study that was killed. If
    the pool is broken, the run of this process is saved first."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([lifeline, parent.sentinel])
    while parent.is_alive() and not _at_work.acquire(timeout=SECONDS_BETWEEN_LOOKS):
        pass
    os._exit(1)
