"""What is done to the code, in a process of its own, before a run begins: a small model, faults, and ears.

A driver is a function without arguments, or a `functools.partial` of one, as `processes.cli` takes it.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from grr_coca.common import ranks as ranks_of_run
from grr_coca.common.ranks import join_ranks
from grr_coca.data.batch import Batch
from grr_coca.data.dataset import PairDataset
from grr_coca.model import losses, presets
from grr_coca.model.coca import CoCa
from grr_coca.model.losses import CaptioningLoss
from grr_coca.train import micro_batches
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.step import Trainer
from grr_coca_search import update

WEE = presets.Size(
    image_size=64,
    patch_size=16,
    image_layers=2,
    image_dim=32,
    image_heads=2,
    text_layers=1,
    text_dim=32,
    text_heads=2,
    vocab_size=2048,
    context_length=48,
    num_queries=4,
    embed_dim=32,
)
"""Some thousand weights: a step takes milliseconds, and so does a checkpoint."""


def shrink() -> None:
    """`tiny` becomes tinier."""
    presets.SIZES["tiny"] = WEE


def commit_often() -> None:
    """An update of an index commits every tenth of a second."""
    update.SECONDS_BETWEEN_COMMITS = 0.1


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
    """Die before the so-manyth micro-batch, counted from 1, or before so many parts of a checkpoint are durable."""
    owner, name = {"micro-batch": (ParallelModel, "__call__"), "sync": (os, "fsync")}[what]
    calls = 0

    def count(first: Any, *_: Any) -> None:
        nonlocal calls
        calls += what != "sync" or ".partial" in str(Path(f"/proc/self/fd/{first}").readlink())
        if calls == number:
            die()

    before(owner, name, count)


def at_moment(number: int, seconds: float, counted: Path) -> None:
    """Die some time after the so-manyth of all moments: batches read, micro-batches, files made durable. On the first
    rank alone; `counted` tells how many moments there were."""
    if rank() != 0:
        return
    moments = 0

    def count(*_: Any) -> None:
        nonlocal moments
        moments += 1
        counted.write_text(str(moments))
        if moments == number:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))  # nobody handles it: it ends the process

    for owner, name in ((PairDataset, "__getitems__"), (ParallelModel, "__call__"), (os, "fsync")):
        before(owner, name, count)


def rank() -> int:
    """This process's rank."""
    return int(os.environ.get("RANK", 0))


def pause(step: int, folder: Path) -> None:
    """Before a step, say so by a file `paused`, and wait for a file `go`. In a process group of its own."""
    os.setpgid(0, 0)

    def wait(trainer: Trainer, micro_batches: object, num_tokens: int, number: int) -> None:
        if number == step:
            (folder / "paused").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)

    before(Trainer, "step", wait)


def pause_under_torchrun(step: int, folder: Path) -> None:
    """`pause` in a process of torchrun's."""
    os.environ["TORCHELASTIC_RUN_ID"] = "mine"
    pause(step, folder)


def record_keys(folder: Path) -> None:
    """Append the number and the keys of each step that this rank does to `keys-RANK`."""

    def record(trainer: Trainer, micro_batches: Sequence[Batch], num_tokens: int, step: int) -> None:
        line = {"step": step, "keys": [key for batch in micro_batches for key in batch.keys]}
        with (folder / f"keys-{rank()}").open("a") as file:
            file.write(json.dumps(line) + "\n")

    before(Trainer, "step", record)


def together(*drivers: Callable[[], None]) -> None:
    """Several drivers."""
    for driver in drivers:
        driver()


def stop_after(step: int | None) -> None:
    """Ask for a stop by a signal to oneself, in time for so many steps to be done."""

    def ask(trainer: Trainer, micro_batches: object, num_tokens: int, number: int) -> None:
        if step is not None and number == step - 2 and rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    before(Trainer, "step", ask)


def spoil(sample: int, loss: int, gradient: int | None) -> None:
    """On the last rank, nothing is a number any more: in the steps of these numbers, one image, the captioning loss,
    and the gradient of one weight."""
    if rank() != int(os.environ.get("WORLD_SIZE", 1)) - 1:
        return
    now = -1

    def note(trainer: Trainer, micro_batches: Sequence[Batch], num_tokens: int, step: int) -> None:
        nonlocal now
        now = step
        if step == sample:
            micro_batches[-1].images[0, 0, 3, 3] = torch.nan

    def spoiled(function: Callable[..., CaptioningLoss]) -> Callable[..., CaptioningLoss]:
        def poisoned(*args: object) -> CaptioningLoss:
            return CaptioningLoss(*(part * (torch.nan if now == loss else 1.0) for part in function(*args)))

        return poisoned

    def hook(model: ParallelModel, raw: CoCa, *_: object) -> None:
        raw.text_proj.weight.register_hook(lambda grad: grad * torch.nan if now == gradient else grad)

    before(Trainer, "step", note)
    for module in (losses, micro_batches):
        module.captioning_loss = spoiled(losses.captioning_loss)  # type: ignore[assignment]
    if gradient is not None:
        before(ParallelModel, "__init__", hook)


def die_once(number: int, folder: Path) -> None:
    """On rank 1 of the first launch by torchrun, die before a micro-batch; leaves when, and when the next began."""
    life = os.environ["TORCHELASTIC_RESTART_COUNT"]
    (folder / f"began-{life}-{rank()}").write_text(str(time.time()))
    if life == "0" and rank() == 1:
        before(sys.modules[__name__], "die", lambda: (folder / "died").write_text(str(time.time())))
        die_before("micro-batch", number)


if __name__ == "__main__":  # by torchrun: FOLDER and the command line
    from processes import cli

    sys.exit(cli(*sys.argv[2:], driver=partial(die_once, 16, Path(sys.argv[1]))))


def wait_long_for_the_first(folder: Path) -> None:
    """The first rank works longer than ranks wait for each other elsewhere."""
    ranks_of_run.TIMEOUT = timedelta(seconds=5)
    with join_ranks() as ranks:
        result = ranks.run_on_first(lambda: time.sleep(7) or "done")
        (folder / f"result-{ranks.rank}").write_text(result)
        ranks.sum(torch.zeros(1))


def fail_on_first(folder: Path) -> None:
    """The first rank divides by zero; each writes down what it hears of that."""
    with join_ranks() as ranks:
        try:
            ranks.run_on_first(lambda: 1 / 0)
        except Exception as error:
            (folder / f"error-{ranks.rank}").write_text(f"{type(error).__name__}: {error}")
        ranks.sum(torch.zeros(1))  # so that none closes its connections while another still works
