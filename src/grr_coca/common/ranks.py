"""The processes of a run (ranks), and communication between them.

A run of one process has one rank. Then every exchange returns its own input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grr_coca.common.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `size`. Its tensors lie on `device`.

    `patient`: a process group with a long timeout, in which ranks wait for the work of rank 0. None: the default group.
    """

    rank: int
    size: int
    device: torch.device
    patient: dist.ProcessGroup | None = None

    @classmethod
    def here(cls, device: torch.device, patient: dist.ProcessGroup | None = None) -> "Ranks":
        """The rank of this process. Without a process group, it is the only one."""
        if not dist.is_initialized():
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device, patient)

    @property
    def is_first(self) -> bool:
        """True for rank 0, which writes files and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, b … to B …, in the order of ranks.

        Every rank must have the same number of rows. It can be differentiated: the gradient of each row is the sum of
        its gradients on all ranks, which must all run the backward pass.
        """
        return tensor if self.size == 1 else _Gather.apply(tensor, self.size)

    def gather_objects(self, item: object) -> list:
        """The Python objects of all ranks. This is slow: use it for small objects and rare events."""
        items: list = [item]
        if self.size > 1:
            items = [None] * self.size
            dist.all_gather_object(items, item)
        return items

    def on_first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0, and return its result on all ranks.

        Raises:
            UserError: on all other ranks, if the function raised any error, so that no rank waits forever. Rank 0
                raises the original error.
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
    """`Ranks.gather`: b … to B …. Its backward pass sums gradients over the ranks, and keeps the rank's own rows."""

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
