"""Worker processes of a study, with one thread each.

With two threads each, two jobs on two cores would slow each other down by a factor of ten.

Each process has a connection to its parent, through which it receives calls, and reports progress and results. If the
parent closes the connection or dies, the process saves and stops.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any, TypeVar

import torch

from grr_coca.common.errors import Interruption, UserError, print_warnings

T = TypeVar("T")

_POLL_SECONDS = 0.5
_KILLED = (
    "a worker process was killed, perhaps because memory ran out; run the same command again to continue from the "
    "saved progress"
)


class Workers:
    """Up to `count` worker processes, which are started on demand. Each executes one call at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: list[SpawnProcess] = []
        self._calls: dict[Connection, Future | None] = {}
        self._waiting: list[tuple[Future, tuple[Any, ...]]] = []

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Queue a call for a worker process, and return its future.

        `process_messages` sets the result or error of the future. If the process was killed, the error is a UserError.

        Args:
            function: Function of a module, because it is sent to another process.
            arguments: Arguments, which must be picklable.
        """
        future: Future[T] = Future()
        self._waiting.append((future, (function, *arguments)))
        self._start_waiting()
        return future

    def process_messages(self, on_progress: Callable[[Future, int], object] | None = None) -> None:
        """Process the messages of the workers. If no message has arrived, wait up to half a second for one.

        `on_progress` is called with the future of a call and the progress that the call has reported.
        """
        busy = {connection: future for connection, future in self._calls.items() if future is not None}
        ready = wait(busy, _POLL_SECONDS)
        for connection, future in busy.items():
            if connection not in ready:
                continue
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                del self._calls[connection]
                future.set_exception(UserError(_KILLED))
                continue
            if kind != "progress":
                self._calls[connection] = None
                future.set_exception(content) if kind == "error" else future.set_result(content)
            elif on_progress is not None:
                on_progress(future, content)
        self._start_waiting()

    def all(self, futures: "list[Future[T]]") -> list[T]:
        """Wait for calls, and return their results in order. The first error is raised before other calls end."""
        while not all(future.done() for future in futures):
            self.process_messages()
            _ = [future.result() for future in futures if future.done()]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Make all processes save and stop, and wait for them."""
        for connection in self._calls:
            connection.close()
        self._calls.clear()
        for process in self._processes:
            process.join()

    def _start_waiting(self) -> None:
        idle = [connection for connection, future in self._calls.items() if future is None]
        while self._waiting and (idle or len(self._calls) < self.count):
            connection = idle.pop() if idle else self._new_process()
            self._calls[connection], call = self._waiting.pop(0)
            with suppress(OSError):  # the process was killed, which `process_messages` detects
                connection.send(call)

    def _new_process(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve_calls, args=(theirs, len(self._processes)))
        # A terminal sends Ctrl-C to all processes, but a worker must ignore it, because this process stops the workers.
        # A new process inherits this setting.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()  # otherwise, the end of the connection would not be detected
        self._processes.append(process)
        return ours


@contextmanager
def worker_processes(count: int) -> Iterator[Workers]:
    """Provide up to `count` worker processes. At the end of the context, make them save and stop, and wait for them.

    SIGTERM is handled within the context. `OMP_NUM_THREADS` is set to 1 for this process and its workers.

    Raises:
        Interruption: If SIGTERM was received. Ctrl-C raises a KeyboardInterrupt instead.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    before, workers = signal.signal(signal.SIGTERM, _raise_interruption), Workers(count)
    try:
        yield workers
    finally:
        workers.close()
        signal.signal(signal.SIGTERM, before)


def _raise_interruption(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Interruption(number, "stop requested")


# --- In a worker process

_parent: Connection | None = None
_number = 0


def usable_device() -> torch.device:
    """Return the device of this worker: a GPU, assigned in turn, or the CPU."""
    return (
        torch.device("cuda", _number % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )


def report_progress(done: int) -> None:
    """Report the number of steps that a call has finished to the parent.

    If the parent has requested a stop, send SIGTERM to this process instead, so that the run saves and ends.
    """
    assert _parent is not None, "in a worker process"
    if _is_stopped():
        signal.raise_signal(signal.SIGTERM)
    else:
        with suppress(OSError):  # the parent has just stopped this process, which the next call detects
            _parent.send(("progress", done))


def raise_if_stopped() -> None:
    """Raise a UserError if the parent has requested that this process stop."""
    if _is_stopped():
        raise UserError("stopped")


def _is_stopped() -> bool:
    """Return whether the parent has ended the connection. The end is the only message that can arrive during a call."""
    assert _parent is not None, "in a worker process"
    try:
        return _parent.poll()
    except OSError:
        return True


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    """Ignore SIGTERM.

    When a service is stopped, all its processes receive this signal at the same time, but workers must wait until their
    parent stops them.
    """


def _serve_calls(parent: Connection, number: int) -> None:
    """Execute calls until the parent stops this process, or dies."""
    global _parent, _number
    _parent, _number = parent, number
    if torch.cuda.is_available():
        torch.cuda.set_device(usable_device())  # the GPU whose name and precisions are queried
    print_warnings()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _ignore_signal)
    with suppress(EOFError, OSError):
        while True:
            function, *arguments = parent.recv()
            try:
                message = ("result", function(*arguments))
            except Exception as error:
                error.add_note(traceback.format_exc())
                message = ("error", error)
            parent.send(message)
