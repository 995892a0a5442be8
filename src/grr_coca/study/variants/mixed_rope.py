"""RoPE with learned frequencies that mix rows and columns, beside learned positions (RoPE-Mixed + APE of Heo et al.,
arXiv 2403.13298).

Each head of each layer has two frequencies for every complex channel: a token in row r and column c is rotated by
f_r · r + f_c · c. They begin in pairs of perpendicular directions, turned by a random angle for each head, with
lengths from 1 down to 1/10.

Shapes: T patch tokens, H heads, C complex channels, N projections.
"""

import hashlib
import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.config import CoCaConfig
from grr_coca.layers.block import Block
from grr_coca.layers.layout import Positions
from grr_coca.layers.norm import at_least_fp32
from grr_coca.model import CoCa

BASE = 10.0
"""The paper's: the slowest channel turns by about a tenth of a radian from patch to patch."""


class MixedRotary(nn.Module):
    """Rotates queries and keys by learned mixtures of row and column."""

    places: Float[Tensor, "T 2"]

    def __init__(self, grid_size: int, frequencies: Float[Tensor, "2 H C"]) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(frequencies)
        steps = torch.arange(grid_size, dtype=torch.float32)
        places = torch.stack([steps.repeat_interleave(grid_size), steps.repeat(grid_size)], dim=1)
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Float[Tensor, "B T N H Dh"], positions: Positions) -> Float[Tensor, "B T N H Dh"]:
        """Rotate the vectors of every token by its place."""
        # A sum of two products, which autocast leaves in fp32: bf16 would round the angles.
        angles = (self.places[:, :, None, None] * self.frequencies).sum(dim=1)  # T H C
        turns = torch.polar(torch.ones_like(angles), angles)[positions]  # T H C, or B T H C
        turned = torch.view_as_complex(at_least_fp32(x).unflatten(-1, (-1, 2))) * turns.unsqueeze(-3)
        return torch.view_as_real(turned).flatten(-2).type_as(x)


def with_mixed_rope(model: CoCa, config: CoCaConfig, seed: int) -> None:
    """Give every block of the image encoder such a rotation. Positions that are added to the tokens stay."""
    image = config.image_encoder
    assert not image.num_registers, "registers have no place to be turned by"
    for number, block in enumerate(cast(list[Block], model.image_encoder.blocks)):
        assert block.attn.rotary is None, "the preset has learned positions in the image encoder"
        frequencies = first_frequencies(image.transformer.num_heads, image.transformer.head_dim, f"{seed}:{number}")
        block.attn.rotary = MixedRotary(image.grid_size, frequencies)  # type: ignore[assignment]


def first_frequencies(num_heads: int, head_dim: int, seed: str) -> Float[Tensor, "2 H C"]:
    """Frequencies of rows and columns before training; they depend on `seed` alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) >> 1)
    direction = 2 * math.pi * torch.rand(num_heads, 1, generator=generator)  # H 1
    directions = torch.stack([direction, direction + math.pi / 2], dim=1)  # H 2 1
    length = BASE ** -(torch.arange(0, head_dim, 4) / head_dim)  # C/2
    return torch.stack([(length * directions.sin()).flatten(1), (length * directions.cos()).flatten(1)])
