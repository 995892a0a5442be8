"""What is done to the code, in a process of its own, before a run begins: a small model, faults, and ears.

A driver is a function without arguments, or a `functools.partial` of one, as `processes.cli` takes it.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grr_coca import files, presets
from grr_coca.train import gradients
from grr_coca.train.step import Trainer

WEE = presets.Size(64, 16, 2, 32, 2, 1, 32, 2, 2048, 48, 4, 32)
"""Some thousand weights: a step takes milliseconds, and so does a checkpoint."""


def shrink() -> None:
    """`tiny` becomes tinier."""
    presets.SIZES["tiny"] = WEE


def before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Have something happen before each call of a function."""
    function = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        act(*args, **kwargs)
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def die() -> None:
    """As the kernel ends a process when memory runs out: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(what: str, number: int) -> None:
    """Die before the so-manyth micro-batch, counted from 1, or before a file or folder is so-manyth made durable."""
    owner, name = {"micro-batch": (gradients, "_backward"), "sync": (files, "_sync")}[what]
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            die()

    before(owner, name, count)


def pause(step: int, folder: Path) -> None:
    """Before a step, say so by a file `paused`, and wait for a file `go`. In a process group of its own."""
    os.setpgid(0, 0)

    def wait(trainer: Trainer, micro_batches: object, num_tokens: int, number: int) -> None:
        if number == step:
            (folder / "paused").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)

    before(Trainer, "step", wait)
