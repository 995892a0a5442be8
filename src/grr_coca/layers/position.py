"""Learned absolute positions, which RoPE replaces."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.layout import Positions


class LearnedPosition(nn.Module):
    """Adds the learned vector of its position to each token."""

    def __init__(self, num_positions: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(num_positions, embed_dim))

    def forward(self, x: Float[Tensor, "B T D"], positions: Positions) -> Float[Tensor, "B T D"]:
        """x plus the vectors of the positions of its tokens."""
        return x + self.embedding[positions]


class NoPosition(nn.Module):
    """Adds nothing: positions are left to RoPE."""

    def forward(self, x: Float[Tensor, "B T D"], _: Positions) -> Float[Tensor, "B T D"]:
        """x as it is."""
        return x
