"""Normalization, and a scale and shift by channel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.precision import at_least_fp32


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    The mean of squares is computed in fp32 or better, because a sum in bf16 has only eight bits of precision.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Normalize each vector of the last dimension. Shape and dtype stay the same."""
        weight = at_least_fp32(self.weight)
        return F.rms_norm(at_least_fp32(x), weight.shape, weight, self.eps).type_as(x)


class ChannelAffine(nn.Module):
    """`x * weight + bias` by channel: the second half of a LayerNorm, for inputs that are normalized already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Scale and shift every channel."""
        return x * self.weight + self.bias
