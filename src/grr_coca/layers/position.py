"""Learned absolute positions, the part that RoPE replaces."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LearnedPosition(nn.Module):
    """Adds a learned vector to each position; a shorter sequence takes the first ones."""

    def __init__(self, num_positions: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(num_positions, embed_dim))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """x plus the embedding of positions 0 … T-1."""
        return x + self.embedding[: x.shape[1]]
