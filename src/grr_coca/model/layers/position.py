"""Positions of tokens: rotary position embedding (RoPE) over a line or a grid, and learned position vectors.

Shapes: B batch, T positions, D width, H heads of width Dh, C = Dh / 2 complex channels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Complex64, Float
from torch import Tensor, nn

from grr_coca.model.layers.layout import Positions
from grr_coca.model.layers.norm import at_least_fp32

LINE_BASE = 10_000.0
"""RoFormer's base, for text and for patches in raster order."""
GRID_BASE = 100.0
"""Base for the rows and columns of an image. There are a few dozen of them, so wavelengths of thousands are of no
use."""


def line_angles(num_positions: int, head_dim: int) -> Float[Tensor, "T C"]:
    """Angles of the positions 0 … T-1 of a sequence, in radians."""
    return _angles(torch.arange(num_positions), head_dim // 2, LINE_BASE)


def grid_angles(grid_size: int, head_dim: int) -> Float[Tensor, "T C"]:
    """Angles of the patches of a square grid, in raster order and in radians.

    They are axial: the row rotates the first half of the channels, and the column the second half.
    """
    steps = torch.arange(grid_size)
    rows, columns = steps.repeat_interleave(grid_size), steps.repeat(grid_size)
    channels = head_dim // 4
    return torch.cat([_angles(rows, channels, GRID_BASE), _angles(columns, channels, GRID_BASE)], dim=1)


def _angles(positions: Tensor, num_channels: int, base: float) -> Tensor:
    frequencies = base ** -(torch.arange(num_channels, dtype=torch.float64) / num_channels)
    return torch.outer(positions.double(), frequencies)


class Rotary(nn.Module):
    """Rotates queries and keys by the angle of their position (RoFormer, arXiv 2104.09864).

    Neighbouring channels (2c, 2c + 1) form the complex number that is rotated. In eager mode on a CPU, a complex
    product is three times as fast as the rotate-half form. A compiler cannot fuse complex products with what is around
    them, so it gets the same products in real numbers.
    """

    table: Complex64[Tensor, "T C"]
    cos_sin: Float[Tensor, "T C 2"]

    def __init__(self, angles: Float[Tensor, "T C"]) -> None:
        super().__init__()
        table = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        self.register_buffer("table", table, persistent=False)
        # The same memory. A buffer has a fixed size for a compiler, which would otherwise take its channels for the
        # tokens of a caption where the two numbers are equal.
        self.register_buffer("cos_sin", torch.view_as_real(table), persistent=False)

    def forward(self, x: Float[Tensor, "B T N H Dh"], positions: Positions) -> Float[Tensor, "B T N H Dh"]:
        """Rotate queries and keys (N = 2) of every token by the token's position."""
        if torch.compiler.is_compiling():
            return self._rotated_in_real_numbers(x, positions)
        rotation = self.table[positions]  # T C, or B T C if every row has its own positions
        rotated = torch.view_as_complex(at_least_fp32(x).unflatten(-1, (-1, 2))) * rotation[..., None, None, :]
        return torch.view_as_real(rotated).flatten(-2).type_as(x)

    def _rotated_in_real_numbers(
        self, x: Float[Tensor, "B T N H Dh"], positions: Positions
    ) -> Float[Tensor, "B T N H Dh"]:
        cos, sin = self.cos_sin[positions][..., None, None, :, :].unbind(-1)
        real, imaginary = at_least_fp32(x).unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
        return rotated.flatten(-2).type_as(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":  # noqa: ARG002
        # `model.to(torch.bfloat16)` moves the table but must not round its angles.
        self.table = self.table.to(fn(torch.empty(0, device=self.table.device)).device)
        self.cos_sin = torch.view_as_real(self.table)
        return self


class LearnedPosition(nn.Module):
    """Adds the learned vector of its position to each token."""

    def __init__(self, num_positions: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(num_positions, embed_dim))

    def forward(self, x: Float[Tensor, "B T D"], positions: Positions) -> Float[Tensor, "B T D"]:
        """Add the vectors of the positions."""
        return x + self.embedding[positions]


class NoPosition(nn.Module):
    """Adds nothing, for models that use RoPE."""

    def forward(self, x: Float[Tensor, "B T D"], _: Positions) -> Float[Tensor, "B T D"]:
        """Return x unchanged."""
        return x
