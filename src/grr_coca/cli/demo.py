"""`grr-coca demo`."""

import contextlib
import json
import logging
import multiprocessing
import os
import platform
import queue
import shutil
import signal
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated

import torch
import tyro

from grr_coca.cli.progress import bars
from grr_coca.errors import UserError
from grr_coca.files import write_whole
from grr_coca.study.arm import ArmResult, run_arm
from grr_coca.study.plan import Plan, load_plan, stages, with_precision
from grr_coca.study.report import comparison_rows, write_report
from grr_coca.study.table import format_table

_channel: tuple[Queue, Event] | None = None


def run(
    plan: Annotated[Path, tyro.conf.Positional] = Path("recipes/demo.yaml"),
    out: Path = Path("runs/demo"),
) -> None:
    """Run the whole comparison: both models pretrained, fine-tuned on three domains, measured and shown.

    Args:
        plan: YAML file that names presets and recipes.
        out: folder for runs, table and report; an earlier demo in it is replaced.
    """
    resolved = with_precision(load_plan(plan), _device())
    _clear(out, resolved)
    arms = _run_arms(resolved, out)
    rows = comparison_rows(resolved, arms)
    table = format_table(rows, resolved.presets)
    write_whole(out / "table.txt", f"{table}\n".encode())
    write_whole(out / "results.json", json.dumps([asdict(arm) for arm in arms], indent=2).encode())
    runs = (out / resolved.presets[0], out / resolved.presets[1])
    write_report(resolved, arms, runs, _machine(), out / "report.html")
    print(f"\n{table}\n\n{_closing_words(resolved, out)}")


def _run_arms(plan: Plan, out: Path) -> tuple[ArmResult, ArmResult]:
    """Both arms side by side, one core each: two threads each would get in each other's way."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    progress: Queue = context.Queue()
    stop = context.Event()
    recipes = stages(plan)
    total = sum(recipe.schedule.steps for recipe in recipes.values())
    offsets, offset = {}, 0
    for name, recipe in recipes.items():
        offsets[name], offset = offset, offset + recipe.schedule.steps
    workers = min(2, os.cpu_count() or 1)
    with (
        bars(dict.fromkeys(plan.presets, total)) as shown,
        ProcessPoolExecutor(workers, context, initializer=_connect, initargs=(progress, stop)) as pool,
    ):
        futures = [pool.submit(_arm, plan, preset, out / preset) for preset in plan.presets]
        try:
            while not all(future.done() for future in futures):
                _raise_errors(futures)
                with contextlib.suppress(queue.Empty):
                    preset, stage, done, _ = progress.get(timeout=0.5)
                    shown.update(preset, offsets[stage] + done, stage)
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

    return run_arm(plan, preset, out, _device(), on_progress)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _clear(out: Path, plan: Plan) -> None:
    known = {*plan.presets, "table.txt", "results.json", "report.html"}
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in known) if out.is_dir() else []
    if strange:
        raise UserError(f"{out}: holds {strange[0]}, which is not a demo's; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    return f"{platform.machine()}, {device}, torch {torch.__version__}, Python {platform.python_version()}."


def _closing_words(plan: Plan, out: Path) -> str:
    program, recipe = sys.argv[0], os.path.relpath(plan.pretrain)
    checkpoint = out / plan.presets[0] / Path(plan.pretrain).stem
    return "\n".join(
        [
            f"Pictures, captions and searches: {out / 'report.html'}",
            f"Caption an image of yours:       {program} caption --checkpoint {checkpoint} IMAGE.png",
            f"Train on pairs of yours:         {program} pretrain {recipe} --data FOLDER_OR_SHARDS",
        ]
    )
