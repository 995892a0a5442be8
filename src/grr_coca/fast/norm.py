"""Root mean squared normalization that needs little memory."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.norm import RMSNorm


class FastRMSNorm(nn.Module):
    """`RMSNorm` that allocates one tensor of the input's size instead of four. Each would be requested from the system.

    x / sqrt(mean(x²) + eps) = sqrt(D) x / sqrt(|x|² + D eps), and `hypot` computes the last root.
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
