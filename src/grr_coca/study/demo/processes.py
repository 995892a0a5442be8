"""The arms of a comparison side by side, each in a process of its own with one core.

Two threads each would get in each other's way: two such jobs on two cores slow each other tenfold.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch

from grr_coca.errors import Stopped, UserError
from grr_coca.study.demo.arm import ArmResult, run_arm
from grr_coca.study.demo.pace import Pace, measure_pace
from grr_coca.study.demo.plan import DemoPlan, stages, with_numerics

T = TypeVar("T")
Show = Callable[[str, int, str], None]
"""Called with the preset, its steps done over all stages, and the name of the stage."""

_channel: tuple[Queue, Event] | None = None


class Arms:
    """One process for each arm of a plan, as many at once as there are cores, but two at most."""

    def __init__(self, pool: ProcessPoolExecutor, progress: Queue) -> None:
        self._pool = pool
        self._progress = progress

    def with_numerics(self, plan: DemoPlan) -> DemoPlan:
        """The plan with `auto` decided, measured on one core, as an arm has it."""
        (future,) = self._submit([(_numerics, plan)])
        return future.result()

    def paces(self, plan: DemoPlan) -> list[Pace]:
        """How fast both arms train, measured side by side, as they will run."""
        futures = self._submit([(_pace, plan, preset) for preset in plan.presets])
        return self._all(futures, lambda *_: None)

    def run(self, plan: DemoPlan, out: Path, show: Show) -> tuple[ArmResult, ArmResult]:
        """Train and evaluate both arms, or go on with them; their runs lie in `out/PRESET`.

        Raises:
            UserError: an arm failed; the other is stopped.
        """
        offsets, offset = {}, 0
        for name, recipe in stages(plan).items():
            offsets[name], offset = offset, offset + recipe.schedule.steps

        def show_all(preset: str, stage: str, done: int) -> None:
            show(preset, offsets[stage] + done, stage)

        futures = self._submit([(_arm, plan, preset, out / preset) for preset in plan.presets])
        first, second = self._all(futures, show_all)
        return first, second

    def _submit(self, calls: Sequence[tuple[Callable[..., T], *tuple[Any, ...]]]) -> list[Future[T]]:
        """Start calls in the processes, which come into being here and inherit that Ctrl-C is ignored: it reaches every
        process of a terminal, and the parent sees to the others."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return [self._pool.submit(function, *arguments) for function, *arguments in calls]
        finally:
            signal.signal(signal.SIGINT, before)

    def _all(self, futures: list[Future[T]], tell: Callable[[str, str, int], None]) -> list[T]:
        while not all(future.done() for future in futures):
            for future in futures:
                if future.done():
                    _result(future)  # an error of one arm ends both
            with contextlib.suppress(queue.Empty):
                tell(*self._progress.get(timeout=0.5))
        return [_result(future) for future in futures]


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "the process of an arm was ended from outside, as a system does that is short of memory; the same command "
            "goes on from what was saved"
        ) from error


@contextlib.contextmanager
def arm_processes() -> Iterator[Arms]:
    """Processes for the arms. Whatever ends this context asks them to save and stop, and waits until they have.

    Raises:
        Stopped: SIGTERM came; Ctrl-C raises a KeyboardInterrupt as ever.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    progress: Queue = context.Queue()
    stop = context.Event()
    workers = min(2, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, initializer=_connect, initargs=(progress, stop)) as pool:
        try:
            yield Arms(pool, progress)
        finally:
            stop.set()
            signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Stopped(number, "the demo was asked to stop")


def device() -> torch.device:
    """Where arms are trained."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _connect(progress: Queue, stop: Event) -> None:
    """Set up a process that runs an arm."""
    global _channel
    _channel = (progress, stop)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that shows the progress: nobody needs the arms of a demo that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _numerics(plan: DemoPlan) -> DemoPlan:
    return with_numerics(plan, device())


def _pace(plan: DemoPlan, preset: str) -> Pace:
    assert _channel is not None
    return measure_pace(plan, preset, device(), partial(_go_on, _channel[1]))


def _go_on(stop: Event) -> None:
    if stop.is_set():
        raise UserError("stopped")


def _arm(plan: DemoPlan, preset: str, out: Path) -> ArmResult:
    assert _channel is not None
    progress, stop = _channel

    def on_progress(stage: str, done: int) -> None:
        if stop.is_set():
            signal.raise_signal(signal.SIGTERM)  # the run saves and ends, as at any such signal
        progress.put((preset, stage, done))

    return run_arm(plan, preset, out, device(), on_progress)
