"""Products of a single row and a weight matrix.

Nearly all of the time goes into reading the weight, so the kernel that reads fastest wins. Which kernel that is depends
on the maker of the processor. It was measured with weights too large for any cache (docs/performance-log.md).

Shapes: D input channels, O output channels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

PARTS = 8
"""Number of parts that the weight is cut into for a batched product. PyTorch's kernel for batches reads plain weights
twice as fast as any other on AMD's processors, and half as fast as MKL on Intel's."""

RowProduct = Callable[[Float[Tensor, "*B D"]], Float[Tensor, "*B O"]]


def row_product(weight: Float[Tensor, "O D"], intel: bool) -> RowProduct | None:
    """The function that multiplies a row by the weight, laid out once for it. None if no kernel fits the weight."""
    if intel:
        return _by_vector(weight)
    return _by_parts(weight) if len(weight) % PARTS == 0 else None


def is_intel() -> bool:
    """True if the processor is Intel's and PyTorch has MKL."""
    # The oldest PyTorch that we allow has no such function.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkl.is_available() and "Intel" in str(capabilities.get("cpu_name"))


def _by_vector(weight: Float[Tensor, "O D"]) -> RowProduct:
    """BLAS's product of a matrix and a vector. It is slow for matrices of many short rows, so these are laid out as
    long columns."""
    num_outputs, num_inputs = weight.shape
    if num_outputs > num_inputs:
        weight = weight.t().contiguous().t()
    return lambda x: torch.mv(weight, x.view(-1)).view(*x.shape[:-1], -1)


def _by_parts(weight: Float[Tensor, "O D"]) -> RowProduct:
    parts = weight.unflatten(0, (PARTS, -1))

    def product(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        column = x.reshape(1, 1, -1).expand(PARTS, -1, -1).mT  # a transposed row: other layouts are six times as slow
        return torch.bmm(parts, column).view(*x.shape[:-1], -1)

    return product
