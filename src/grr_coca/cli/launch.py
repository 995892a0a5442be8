"""The place of this process in a launch by `torchrun`, read from the environment that it sets."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from grr_coca.errors import Stopped, UserError
from grr_coca.ranks import Ranks

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up. A rank that died is noticed at once, by its connection."""


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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks.here(device)
    except Stopped:  # on all ranks, after the same step
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after an error: another rank may never come to it
