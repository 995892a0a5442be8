"""RMSNorm, and the conversion to the precision that it and the losses need."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.model.attention import at_least_fp32


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
        precise, weight = at_least_fp32(x), at_least_fp32(self.weight)
        return F.rms_norm(precise, weight.shape, weight, self.eps).type_as(x)
