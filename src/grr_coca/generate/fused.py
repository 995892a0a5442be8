"""Layers of the model in the form that the CPU computes fastest, for inference alone.

Shapes: D input channels, O output channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.feed_forward import GEGLU
from grr_coca.layers.norm import RMSNorm


class PackedLinear(nn.Module):
    """An `nn.Linear` that cannot be trained, its weight in oneDNN's own layout too."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        """`x W^T + b`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed_weight, self.bias, "none", [], "")

    def gelu(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        """GELU of it, in one go."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed_weight, self.bias, "gelu", [], "none")

    def times(self, x: Float[Tensor, "*B D"], factor: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """It times a factor, in one go."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.packed_weight, self.bias, "mul")


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
    """`RMSNorm` with one tensor of the input's size in place of four, which are taken from the system each time."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """As in `RMSNorm`."""
        squared = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return x.mul(squared.div_(x.shape[-1]).add_(self.eps).rsqrt_()).mul_(self.weight)
