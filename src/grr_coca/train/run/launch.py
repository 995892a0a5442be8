"""The place of this process in a launch by `torchrun`, read from the environment that it sets."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from grr_coca.errors import Stopped, UserError
from grr_coca.ranks import Ranks

TIMEOUT = timedelta(minutes=30)
"""Time after which a rank no longer waits for the others. A rank that died is noticed at once, by its connection."""


@contextmanager
def launched() -> Iterator[Ranks]:
    """This process among those of its launch, alone if there was none."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"more processes were started than this machine has GPUs; give torchrun --nproc-per-node "
            f"{torch.cuda.device_count()}"
        )
    if "RANK" not in os.environ:
        yield Ranks.here(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _join("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks.here(device)
    except Stopped:  # on all ranks, after the same step
        _leave()
        raise
    _leave()  # not after an error: another rank may never come to it


def _leave() -> None:
    # gloo's threads may still wait for the interpreter, to drop the tensors of the last exchange. Whoever then destroys
    # the group with the interpreter in hand waits for them, and they for it. Asleep, this thread lets them finish.
    time.sleep(0.2)
    dist.destroy_process_group()


def _join(backend: str) -> None:
    """Meet the other ranks.

    torchrun keeps one store for all its restarts, in which those that died have left their addresses: under another
    prefix, none of them is found. Several nodes do not count restarts alike; for them, torchrun makes new stores where
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set.
    """
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
