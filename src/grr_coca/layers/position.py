"""Learned absolute positions, the part that RoPE replaces."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class LearnedPosition(nn.Module):
    """Adds a learned vector to each position; a shorter sequence takes the first ones."""

    def __init__(self, num_positions: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(num_positions, embed_dim))

    def forward(self, x: Float[Tensor, "B T D"], positions: Int[Tensor, " T"] | None = None) -> Float[Tensor, "B T D"]:
        """x plus the embedding of its positions, 0 … T-1 if none are given."""
        return x + (self.embedding[: x.shape[1]] if positions is None else self.embedding[positions])


class NoPosition(nn.Module):
    """Leaves positions to RoPE."""

    def forward(self, x: Float[Tensor, "B T D"], *_: object) -> Float[Tensor, "B T D"]:
        """x."""
        return x
