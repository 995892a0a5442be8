"""Worker processes of a study, with one thread each.

With two threads each, two jobs on two cores would slow each other down tenfold.
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
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any, TypeVar

import torch

from grr_coca.common.errors import Interruption, UserError, print_warnings

T = TypeVar("T")

_POLL_SECONDS = 0.5

Tell = Callable[[str, int], None]
"""Called with the name of a task and its number of finished steps."""

_channel: tuple[Queue, Event] | None = None
_number = 0
_at_work = threading.Lock()
"""Held while this process runs a call."""


class Workers:
    """A pool of processes, and the queue of their progress. `lifeline` is closed when the pool breaks.

    `at_end`: callbacks for when all processes have ended.
    """

    def __init__(
        self,
        pool: ProcessPoolExecutor,
        progress: Queue,
        lifeline: Connection,
        count: int,
        at_end: contextlib.ExitStack,
    ) -> None:
        self._pool = pool
        self._progress = progress
        self._lifeline = lifeline
        self.count = count
        self.at_end = at_end

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Start a call in a worker process.

        Workers ignore Ctrl-C, which a terminal sends to all processes: the parent stops them itself. They inherit this
        when they are created here.
        """
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
        """Pass on one progress message, if one arrives within half a second."""
        with contextlib.suppress(queue.Empty):
            tell(*self._progress.get(timeout=_POLL_SECONDS))

    def all(self, futures: list[Future[T]]) -> list[T]:
        """Wait for calls, and return their results in order.

        Raises:
            UserError: a call failed; the others are stopped when the pool ends.
        """
        while not all(future.done() for future in futures):
            for future in futures:
                if future.done():
                    outcome(future)  # raises the error of a failed call at once
            time.sleep(_POLL_SECONDS)
        return [outcome(future) for future in futures]


def outcome(future: Future[T]) -> T:
    """The result of a finished call.

    Raises:
        UserError: the call failed, or its process was killed.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "the process of an arm was killed, perhaps because memory ran out; the same command continues from what "
            "was saved"
        ) from error


@contextlib.contextmanager
def worker_processes(count: int) -> Iterator[Workers]:
    """A context with `count` worker processes. Its end asks them to save and stop, and waits for them.

    Raises:
        Interruption: SIGTERM came. Ctrl-C raises a KeyboardInterrupt.
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
    pool_of = partial(ProcessPoolExecutor, count, context, _connect, (progress, stop, numbers, held))
    with contextlib.ExitStack() as at_end, pool_of() as pool:
        try:
            yield Workers(pool, progress, lifeline, count, at_end)
        finally:
            stop.set()
            signal.signal(signal.SIGTERM, before)


def usable_device() -> torch.device:
    """The device of this worker: one of the GPUs in turn, or the CPU."""
    return (
        torch.device("cuda", _number % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )


def tell_progress(name: str, done: int) -> None:
    """Report the progress of a task to the parent.

    If the parent has asked to stop, raise SIGTERM: the run then saves and ends.
    """
    assert _channel is not None, "in a worker process"
    progress, stop = _channel
    if stop.is_set():
        signal.raise_signal(signal.SIGTERM)
    progress.put((name, done))


def raise_if_stopped() -> None:
    """Raise a UserError if the parent has asked this worker process to stop."""
    assert _channel is not None, "in a worker process"
    if _channel[1].is_set():
        raise UserError("stopped")


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Interruption(number, "asked to stop")


def _ignore(number: int, frame: FrameType | None) -> None:
    """Ignore SIGTERM.

    The end of a service sends it to all processes at once. A process that died of it would break the pool, which then
    sends SIGTERM to the others again while they are saving.
    """


def _work(function: Callable[..., T], *arguments: Any) -> T:
    with _at_work:
        return function(*arguments)


def _connect(progress: Queue, stop: Event, numbers: Queue, lifeline: Connection) -> None:
    """Set up a process of the pool; its initializer."""
    global _channel, _number
    _channel, _number = (progress, stop), numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(usable_device())  # the GPU whose name and precisions are queried
    print_warnings()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _ignore)
    threading.Thread(target=_end_with_pool, args=(lifeline,), daemon=True).start()


def _end_with_pool(lifeline: Connection) -> None:
    """End this process when its parent has died or the pool has broken. In a broken pool, its run is saved first."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([lifeline, parent.sentinel])
    while parent.is_alive() and not _at_work.acquire(timeout=_POLL_SECONDS):
        pass
    os._exit(1)
