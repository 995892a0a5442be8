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
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from grr_coca.errors import UserError
from grr_coca.study.arm import ArmResult, run_arm
from grr_coca.study.plan import Plan, stages

Show = Callable[[str, int, str], None]
"""Called with the preset, its steps done over all stages, and the name of the stage."""

_channel: tuple[Queue, Event] | None = None


def run_arms(plan: Plan, out: Path, show: Show) -> tuple[ArmResult, ArmResult]:
    """Train and evaluate both arms; their runs lie in `out/PRESET`.

    Raises:
        UserError: an arm failed; the other is stopped.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    progress: Queue = context.Queue()
    stop = context.Event()
    offsets, offset = {}, 0
    for name, recipe in stages(plan).items():
        offsets[name], offset = offset, offset + recipe.schedule.steps
    workers = min(2, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, initializer=_connect, initargs=(progress, stop)) as pool:
        futures = [pool.submit(_arm, plan, preset, out / preset) for preset in plan.presets]
        try:
            while not all(future.done() for future in futures):
                _raise_errors(futures)
                with contextlib.suppress(queue.Empty):
                    preset, stage, done, _ = progress.get(timeout=0.5)
                    show(preset, offsets[stage] + done, stage)
        finally:
            stop.set()  # after an error or Ctrl-C in one arm, the other has nothing left to do
        first, second = (future.result() for future in futures)
    return first, second


def _raise_errors(futures: list[Future[ArmResult]]) -> None:
    for future in futures:
        if future.done():
            future.result()


def _connect(progress: Queue, stop: Event) -> None:
    """Set up a process that runs an arm."""
    global _channel
    _channel = (progress, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent sees to the others
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that shows the progress: nobody needs the arms of a demo that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _arm(plan: Plan, preset: str, out: Path) -> ArmResult:
    assert _channel is not None
    progress, stop = _channel

    def on_progress(stage: str, done: int, steps: int) -> None:
        if stop.is_set():
            raise UserError(f"{preset}: stopped, because the other arm was")
        progress.put((preset, stage, done, steps))

    return run_arm(plan, preset, out, device(), on_progress)


def device() -> torch.device:
    """Where arms are trained."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
