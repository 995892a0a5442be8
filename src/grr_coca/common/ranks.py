"""The processes of a run (ranks): communication between them, their process group, and signals that stop them.

`torchrun` or a scheduler starts the processes. A run with one process has one rank, and needs no communication. A
signal does not end a run immediately, because the run first saves its state.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from grr_coca.common.errors import Interruption, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process as one of the ranks of a run, and its communication with the other ranks.

    All ranks must call each method that exchanges data, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        device: Device of this process's tensors.
        patient: Process group with a long timeout, in which ranks wait for rank 0. If None, the default group is used.
    """

    rank: int
    size: int
    device: torch.device
    patient: dist.ProcessGroup | None = None

    @classmethod
    def current(cls, device: torch.device, patient: dist.ProcessGroup | None = None) -> "Ranks":
        """Return this process as a rank of the default process group, or as the only rank if there are no groups."""
        if not dist.is_initialized():
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device, patient)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and prints output."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the rows of all ranks in the order of ranks: b rows of each rank become B rows.

        Every rank must have the same number of rows. The operation is differentiable: the gradient of each row is the
        sum of its gradients on all ranks, which must all run the backward pass.
        """
        return tensor if self.size == 1 else _Gather.apply(tensor, self.size)

    def gather_objects(self, item: object) -> list:
        """Return the Python objects of all ranks, in the order of ranks.

        The objects must be serializable. This is slow, so use it only for small objects and rare events.
        """
        items: list = [item]
        if self.size > 1:
            items = [None] * self.size
            dist.all_gather_object(items, item)
        return items

    def run_on_first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0, and return its result, which must be serializable, on all ranks.

        Raises:
            UserError: On all ranks except rank 0, if the function raised any `Exception`, so that no rank waits
                forever. Rank 0 raises the original error.
        """
        outcome: list = [None, None]
        failure: Exception | None = None
        if self.is_first:
            try:
                outcome[0] = function()
            except Exception as error:
                failure, outcome[1] = error, str(error) or type(error).__name__
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0, group=self.patient)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]


class _Gather(torch.autograd.Function):
    """Autograd function of `Ranks.gather`: b rows to B rows.

    The backward pass sums the gradients over all ranks, and keeps the rows of this rank.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, size: int) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(size)]
        dist.all_gather(parts, tensor.contiguous())
        ctx.size = size
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        parts = [part.contiguous() for part in gradient.chunk(ctx.size)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts)
        return mine, None


SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""Signals by which schedulers and users end a run, interrupt it, or warn of SLURM's time limit. Windows has no
SIGUSR1."""


class StopSignals:
    """Context that counts the signals in `SIGNALS`, so that a run can stop at a suitable point.

    The first signal of each kind is only counted. The second takes effect immediately, because the handler from before
    the context is restored. Signals that the process ignores are still ignored. Outside the main thread, the context
    has no effect, because Python sets handlers only there.

    Under torchrun, only the third SIGTERM or SIGUSR1 takes effect immediately, because a process can receive the same
    signal twice: schedulers send these signals to all processes, and torchrun forwards those that it receives.

    Attributes:
        counts: Number of signals that were counted, for each signal in `SIGNALS`.
    """

    def __init__(self) -> None:
        self.counts = [0] * len(SIGNALS)
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # keep ignoring a signal that the parent process has set to be ignored
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _count(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        sent = signal.Signals(number)
        self.counts[SIGNALS.index(sent)] += 1
        if self.counts[SIGNALS.index(sent)] == _num_counted(sent):
            signal.signal(number, self._before[sent])  # type: ignore[arg-type]


def _num_counted(sent: signal.Signals) -> int:
    return 2 if "TORCHELASTIC_RUN_ID" in os.environ and sent != signal.SIGINT else 1


TIMEOUT = timedelta(minutes=30)
"""Timeout of exchanges with other ranks. If a rank dies, gloo detects the broken connection immediately. NCCL does not;
torchrun and `srun --kill-on-bad-exit` then end the other ranks."""
RANK_0_TIMEOUT = timedelta(days=1)
"""Timeout for work that only rank 0 does, such as training a tokenizer on millions of captions or captioning a
validation split."""


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Yield the rank of this process, and join all ranks in a process group for the duration of the context.

    Without the environment variables that `torchrun` sets, such as `RANK`, this process is the only rank. If the
    context ends with an error other than an `Interruption`, the process stays in the group, because leaving could wait
    for ranks that never leave.

    Raises:
        UserError: If the machine has too few GPUs; see `device_of_process`.
    """
    device = device_of_process()
    if "RANK" not in os.environ:
        yield Ranks.current(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _join_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        ranks = Ranks.current(device, dist.new_group(timeout=RANK_0_TIMEOUT))
        ranks.run_on_first(lambda: None)  # this connects the group now, with the timeout of the other exchanges
        yield ranks
    except Interruption:  # this error is raised on all ranks, after the same step
        _leave_process_group()
        raise
    _leave_process_group()  # not after other errors, because another rank may never reach this point


def device_of_process() -> torch.device:
    """Return the GPU of this process, or the CPU if the machine has no GPU.

    The environment variable `LOCAL_RANK` is the number of the GPU, except that a process without torchrun that can use
    only one GPU gets that GPU.

    Raises:
        UserError: If torchrun or a scheduler started more processes on this machine than it has GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, num_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if num_gpus == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        number = 0  # a scheduler can expose one GPU to each process
    if number >= num_gpus:
        raise UserError(
            f"more processes were started than this machine has GPUs ({num_gpus}); "
            f"use torchrun --nproc-per-node {num_gpus}"
        )
    return torch.device("cuda", number)


def _leave_process_group() -> None:
    # gloo's threads may still need Python's interpreter lock, to free the tensors of the last exchange. If this thread
    # destroyed the group now, it would hold that lock while it waits for gloo's threads, which is a deadlock. While
    # this thread sleeps, gloo's threads can get the lock.
    time.sleep(0.2)
    dist.destroy_process_group()


def _join_process_group(backend: str) -> None:
    """Join the other ranks in a process group.

    torchrun uses the same store after a restart, so the store still contains the addresses of dead processes. A new
    prefix for each restart hides them. Nodes may disagree on the number of restarts, so runs on several nodes use no
    prefix; torchrun creates a new store for each restart if TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set.
    """
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
