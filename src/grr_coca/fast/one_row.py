"""Products of a single row and a weight matrix.

Reading the weight is all the work, so the kernel that reads fastest wins. Which one that is depends on the maker of the
processor. It was measured with weights that no cache holds (docs/performance-log.md).

Shapes: D input channels, O output channels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

PARTS = 8
"""Parts of the weight in a batch of products. PyTorch's kernel for batches reads plain weights twice as fast as any
other on AMD's processors, and half as fast as MKL on Intel's."""

RowProduct = Callable[[Float[Tensor, "*B D"]], Float[Tensor, "*B O"]]


def row_product(weight: Float[Tensor, "O D"], intel: bool) -> RowProduct | None:
    """The function that multiplies a row with the weight, which it lays out once. None if no kernel fits the weight."""
    if intel:
        return _by_vector(weight)
    return _by_parts(weight) if len(weight) % PARTS == 0 else None


def is_intel() -> bool:
    """Whether this is an Intel processor, and MKL is here."""
    capabilities: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # newer than the oldest PyTorch that we take
    return torch.backends.mkl.is_available() and "Intel" in str(capabilities.get("cpu_name"))


def _by_vector(weight: Float[Tensor, "O D"]) -> RowProduct:
    """BLAS's product of a matrix and a vector. It is slow at many short rows: those are laid out as long columns."""
    num_outputs, num_inputs = weight.shape
    if num_outputs > num_inputs:
        weight = weight.t().contiguous().t()
    return lambda x: torch.mv(weight, x.view(-1)).view(*x.shape[:-1], -1)


def _by_parts(weight: Float[Tensor, "O D"]) -> RowProduct:
    parts = weight.unflatten(0, (PARTS, -1))

    def product(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        column = x.reshape(1, 1, -1).expand(PARTS, -1, -1).mT  # a transposed row: another layout is six times as slow
        return torch.bmm(parts, column).view(*x.shape[:-1], -1)

    return product
