"""Layers of the model in the form that the CPU computes fastest, for inference alone.

Shapes: D input channels, O output channels.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.fast.row import RowProduct, is_intel, row_product
from grr_coca.layers.feed_forward import GEGLU
from grr_coca.layers.norm import RMSNorm


class PackedLinear(nn.Module):
    """An `nn.Linear` that cannot be trained, its weight laid out for one row and for more.

    Each layout is made when it is first needed: who decodes one caption at a time does not pay for the other.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        """`x W^T + b`."""
        row = self._row(x)
        if row is not None:
            return row
        return torch.ops.mkldnn._linear_pointwise(x, self.packed_weight, self.bias, "none", [], "")

    def gelu(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        """GELU of it, in one go."""
        row = self._row(x)
        if row is not None:
            return F.gelu(row)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed_weight, self.bias, "gelu", [], "none")

    def times(self, x: Float[Tensor, "*B D"], factor: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """It times a factor, in one go."""
        row = self._row(x)
        if row is not None:
            return row.mul_(factor)
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.packed_weight, self.bias, "mul")

    @cached_property
    def packed_weight(self) -> Tensor:
        """The weight in the blocks that oneDNN's kernels read."""
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())

    @cached_property
    def row_product(self) -> RowProduct | None:
        """What multiplies a single row."""
        return row_product(self.weight.detach(), is_intel())

    def _row(self, x: Tensor) -> Tensor | None:
        """The result for a single row, None for more."""
        if x.numel() != x.shape[-1] or self.row_product is None:
            return None
        product = self.row_product(x)
        return product if self.bias is None else product.add_(self.bias)


class FusedGEGLU(nn.Module):
    """`GEGLU` without a pass over memory for its activation and none for its product."""

    def __init__(self, feed_forward: GEGLU) -> None:
        super().__init__()
        self.feed_forward = feed_forward

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """As in `GEGLU`."""
        part = self.feed_forward
        assert isinstance(part.gate_proj, PackedLinear)
        assert isinstance(part.up_proj, PackedLinear)
        return part.down_proj(part.up_proj.times(x, part.gate_proj.gelu(x)))


class FusedRMSNorm(nn.Module):
    """`RMSNorm` with one tensor of the input's size in place of four, which are taken from the system each time.

    x / sqrt(mean(x²) + eps) = sqrt(D) x / sqrt(|x|² + D eps), and `hypot` takes the latter root.
    """

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        dim = len(norm.weight)
        self.weight = norm.weight.detach() * dim**0.5
        self.root = torch.tensor((dim * norm.eps) ** 0.5)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """As in `RMSNorm`."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.root)
        return x.div(length).mul_(self.weight)
