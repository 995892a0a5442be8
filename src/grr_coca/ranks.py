"""The processes of a run: which of them I am, and what they tell each other.

One process is a run of one rank, in which every exchange returns what it was given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grr_coca.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `size`; its tensors lie on `device`."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def here(cls, device: torch.device) -> "Ranks":
        """This process's place in the process group, if there is one."""
        if not dist.is_initialized():
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks, b … to B …, in the order of ranks. Every rank has as many; no gradient flows."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def scatter_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, of which each keeps its own rows, B … to b …."""
        if self.size == 1:
            return tensor
        parts = [part.contiguous() for part in tensor.chunk(self.size)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts)
        return mine

    def gather_objects(self, item: object) -> list:
        """Small Python objects of all ranks, for rare events."""
        items: list = [item]
        if self.size > 1:
            items = [None] * self.size
            dist.all_gather_object(items, item)
        return items

    def on_first(self, function: Callable[[], T]) -> T:
        """Let the first rank do something, and all ranks have its result, or its error.

        Raises:
            UserError: on every rank, if the function raised one; no rank is left waiting for another.
        """
        outcome: list = [None, None]
        if self.is_first:
            try:
                outcome[0] = function()
            except UserError as error:
                outcome[1] = str(error)
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]
