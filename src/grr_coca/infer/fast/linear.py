"""Fast linear layer for inference on a CPU, with a layout of the weight for many rows and another for a single row.

Decoding multiplies few rows by large matrices. For such products, oneDNN with a weight in oneDNN's blocked layout is
two to three times as fast as PyTorch with a plain weight. oneDNN also applies the next operation (GELU, or
multiplication by a factor) while the result is in registers (`benchmarks/captioning.py`). For a single row, nearly all
of the time is spent reading the weight, so the kernel that reads fastest is used. The fastest kernel depends on the
processor's manufacturer, and was determined with weights too large for any cache (benchmarks/LOG.md).

Shapes: D input channels, O output channels.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.common.torch_private import block_weight, blocked_linear, blocked_linear_gelu, blocked_linear_times

PARTS = 8
"""Number of parts into which the weight is split for a batched product. PyTorch's batch kernel reads plain weights
twice as fast as any other kernel on AMD processors, and half as fast as MKL on Intel processors."""

RowProduct = Callable[[Float[Tensor, "*B D"]], Float[Tensor, "*B O"]]


def row_product(weight: Float[Tensor, "O D"], intel: bool) -> RowProduct | None:
    """Return a function that multiplies a single row by the weight, which is reordered here once.

    Return None if no kernel fits the weight. `intel` is the result of `is_intel`.
    """
    if intel:
        return _make_vector_product(weight)
    return _make_product_by_parts(weight) if len(weight) % PARTS == 0 else None


def is_intel() -> bool:
    """Return whether the processor is from Intel and PyTorch has MKL."""
    # The oldest supported PyTorch does not have this function.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkl.is_available() and "Intel" in str(capabilities.get("cpu_name"))


def _make_vector_product(weight: Float[Tensor, "O D"]) -> RowProduct:
    """Return a row product that uses BLAS's matrix-vector product.

    That product is slow for a weight with many short rows, so such a weight is stored by columns.
    """
    num_outputs, num_inputs = weight.shape
    if num_outputs > num_inputs:
        weight = weight.t().contiguous().t()
    return lambda x: torch.mv(weight, x.view(-1)).view(*x.shape[:-1], -1)


def _make_product_by_parts(weight: Float[Tensor, "O D"]) -> RowProduct:
    parts = weight.unflatten(0, (PARTS, -1))

    def product(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        # a transposed row, because other layouts are six times as slow
        column = x.reshape(1, 1, -1).expand(PARTS, -1, -1).mT
        return torch.bmm(parts, column).view(*x.shape[:-1], -1)

    return product


class FastLinear(nn.Module):
    """`nn.Linear` for inference. Each layout of the weight is created when it is first used."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        """Return `x W^T + b`."""
        row = self._row(x)
        return blocked_linear(x, self.blocked_weight, self.bias) if row is None else row

    def gelu(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        """Return the GELU of the layer's result, computed together with the product."""
        row = self._row(x)
        return blocked_linear_gelu(x, self.blocked_weight, self.bias) if row is None else F.gelu(row)

    def times(self, x: Float[Tensor, "*B D"], factor: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """Return the layer's result times a factor, computed together with the product."""
        row = self._row(x)
        return blocked_linear_times(x, factor, self.blocked_weight, self.bias) if row is None else row.mul_(factor)

    @cached_property
    def blocked_weight(self) -> Tensor:
        """Weight in the blocked layout of oneDNN's kernels."""
        return block_weight(self.weight)

    @cached_property
    def row_product(self) -> RowProduct | None:
        """Function that multiplies a single row by the weight. None if no kernel fits the weight."""
        return row_product(self.weight.detach(), is_intel())

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the reordered weights, which cannot be copied or serialized.

        A copy creates them again.
        """
        layouts = ("blocked_weight", "row_product")
        return {name: value for name, value in super().__getstate__().items() if name not in layouts}

    def _row(self, x: Tensor) -> Tensor | None:
        """Return the result if `x` is a single row and there is a kernel for single rows, otherwise None."""
        if x.numel() != x.shape[-1] or self.row_product is None:
            return None
        product = self.row_product(x)
        return product if self.bias is None else product.add_(self.bias)
