"""Variants: changes of a preset's image encoder that only arms of studies have.

| variant | change |
|---|---|
| `input_rope` | RoPE before the query and key projections, instead of after them |
| `mixed_rope` | RoPE with learned frequencies that mix rows and columns, beside learned positions |
| `learned_positions` | learned positions beside RoPE |

Shapes: B batch, T tokens, D width, H heads, Dh head width, C complex channels, N projections.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.model.checkpoint import ChangeModel
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig
from grr_coca.model.init import POSITION_STD, draw_normal
from grr_coca.model.layers.attention import SelfAttention
from grr_coca.model.layers.block import Block
from grr_coca.model.layers.layout import Layout, Positions
from grr_coca.model.layers.norm import at_least_fp32
from grr_coca.model.layers.position import LearnedPosition, NoPosition, Rotary
from grr_coca.study.plan import Variant


def change_of(variant: Variant | None, seed: int) -> ChangeModel | None:
    """The function that makes a variant of a preset's model, with new weights drawn from `seed`. None: no change."""
    return None if variant is None else partial(_change, variant, seed)


def _change(variant: Variant, seed: int, model: CoCa, config: CoCaConfig) -> None:
    _VARIANTS[variant](model, config, seed)


# --- RoPE before the query and key projections


class _InputRotaryAttention(SelfAttention):
    """Self-attention with RoPE before the query and key projections; it takes the weights of another self-attention.

    This is another reading of "RoPE in the ViT", that of an earlier study of the same three parts (the public
    repository jakepatock/DL_final_project). Each head's slice of the normalized tokens is rotated; queries and keys are
    projected from the rotated tokens, values from the tokens themselves. The product of a query and a key then depends
    on both positions, not only on their distance.
    """

    def __init__(self, attn: SelfAttention, rotary: Rotary) -> None:
        super().__init__(attn.out_proj.in_features, attn.num_heads, None, attn.qk_norm)
        self.input_rotary = rotary
        self.qkv_proj, self.out_proj = attn.qkv_proj, attn.out_proj

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        """Attend within each sequence."""
        width = x.shape[-1]
        heads = x.unflatten(-1, (1, self.num_heads, -1))  # B T 1 H Dh
        rotated = self.input_rotary(heads, layout.positions).flatten(2)  # B T D
        qk = F.linear(rotated, self.qkv_proj.weight[: 2 * width])
        v = F.linear(x, self.qkv_proj.weight[2 * width :])
        qk = self.qk_norm(qk.unflatten(-1, (2, self.num_heads, -1)))
        return self.attend(qk, v.unflatten(-1, (self.num_heads, -1)), layout)


def _with_input_rope(model: CoCa, config: CoCaConfig, seed: int) -> None:  # noqa: ARG001
    """Move RoPE in the image encoder before the query and key projections. The angles stay the same."""
    for block in cast(list[Block], model.image_encoder.blocks):
        assert block.attn.rotary is not None, "the preset has RoPE in the image encoder"
        block.attn = _InputRotaryAttention(block.attn, block.attn.rotary)


# --- RoPE with learned frequencies

_BASE = 10.0
"""The paper's base: the slowest channel is rotated by about 0.1 radian from patch to patch."""


class _MixedRotary(nn.Module):
    """RoPE-Mixed of Heo et al. (arXiv 2403.13298): rotates queries and keys by learned mixtures of row and column.

    Each head of each layer has two frequencies for every complex channel. A token in row r and column c is rotated by
    f_r · r + f_c · c. The initial frequencies are pairs of perpendicular directions, turned by a random angle for each
    head, with lengths from 1 down to 1/10.
    """

    places: Float[Tensor, "T 2"]

    def __init__(self, grid_size: int, frequencies: Float[Tensor, "2 H C"]) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(frequencies)
        steps = torch.arange(grid_size, dtype=torch.float32)
        places = torch.stack([steps.repeat_interleave(grid_size), steps.repeat(grid_size)], dim=1)
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Float[Tensor, "B T N H Dh"], positions: Positions) -> Float[Tensor, "B T N H Dh"]:
        """Rotate the vectors of every token by its row and column."""
        # Not a matrix product, which autocast would compute in bf16: that would round the angles.
        angles = (self.places[:, :, None, None] * self.frequencies).sum(dim=1)  # T H C
        turns = torch.polar(torch.ones_like(angles), angles)[positions]  # T H C, or B T H C
        turned = torch.view_as_complex(at_least_fp32(x).unflatten(-1, (-1, 2))) * turns.unsqueeze(-3)
        return torch.view_as_real(turned).flatten(-2).type_as(x)


def _with_mixed_rope(model: CoCa, config: CoCaConfig, seed: int) -> None:
    """Add RoPE-Mixed to every block of the image encoder. Its learned positions stay (RoPE-Mixed + APE)."""
    image = config.image_encoder
    assert not image.num_registers, "registers have no row and column"
    for number, block in enumerate(cast(list[Block], model.image_encoder.blocks)):
        assert block.attn.rotary is None, "the preset has learned positions in the image encoder"
        frequencies = _first_frequencies(image.transformer.num_heads, image.transformer.head_dim, f"{seed}:{number}")
        block.attn.rotary = _MixedRotary(image.grid_size, frequencies)  # type: ignore[assignment]


def _first_frequencies(num_heads: int, head_dim: int, seed: str) -> Float[Tensor, "2 H C"]:
    """Initial frequencies of rows and columns, drawn from `seed` alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) >> 1)
    direction = 2 * math.pi * torch.rand(num_heads, 1, generator=generator)  # H 1
    directions = torch.stack([direction, direction + math.pi / 2], dim=1)  # H 2 1
    length = _BASE ** -(torch.arange(0, head_dim, 4) / head_dim)  # C/2
    return torch.stack([(length * directions.sin()).flatten(1), (length * directions.cos()).flatten(1)])


# --- Learned positions beside RoPE


def _with_learned_positions(model: CoCa, config: CoCaConfig, seed: int) -> None:
    """Add learned positions to the patches, beside RoPE, with the initial values of Baseline CoCa for this seed.

    RoPE tells attention the distance of two patches, but not where they are. Poolers and cross-attention see absolute
    positions only if these are added to the patches.
    """
    assert isinstance(model.image_encoder.position, NoPosition), "the preset leaves positions to RoPE"
    image = config.image_encoder
    position = LearnedPosition(image.num_patches, image.transformer.embed_dim)
    with torch.no_grad():
        draw_normal(position.embedding, POSITION_STD, "image_encoder.position.embedding", seed)
    model.image_encoder.position = position.to(model.device)


_VARIANTS: dict[Variant, Callable[[CoCa, CoCaConfig, int], None]] = {
    "input_rope": _with_input_rope,
    "mixed_rope": _with_mixed_rope,
    "learned_positions": _with_learned_positions,
}
"""Changes a built model in place. Weights that the preset has too keep their initial values."""
