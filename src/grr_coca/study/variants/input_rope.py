"""RoPE on the input of the projections of queries and keys, in place of their output.

Another reading of "RoPE in the ViT". An earlier study of the same three parts in a vision transformer does it so (the
public repository jakepatock/DL_final_project): each head's slice of the normalized tokens is rotated by the position,
queries and keys are projected from the rotated tokens, values from the tokens as they are. The product of a query and a
key then depends on both positions, and not on their distance alone.

Shapes: B batch, T tokens, D width, H heads.
"""

from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grr_coca.config import CoCaConfig
from grr_coca.layers.attention import SelfAttention
from grr_coca.layers.block import Block
from grr_coca.layers.layout import Layout
from grr_coca.layers.position import Rotary
from grr_coca.model import CoCa


class InputRotaryAttention(SelfAttention):
    """Self-attention whose queries and keys are projected from rotated tokens. It has the weights of another."""

    def __init__(self, attn: SelfAttention, rotary: Rotary) -> None:
        super().__init__(attn.out_proj.in_features, attn.num_heads, None, attn.qk_norm)
        self.input_rotary = rotary
        self.qkv_proj, self.out_proj = attn.qkv_proj, attn.out_proj

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        """Mix the tokens of each sequence."""
        width = x.shape[-1]
        heads = x.unflatten(-1, (1, self.num_heads, -1))  # B T 1 H Dh
        rotated = self.input_rotary(heads, layout.positions).flatten(2)  # B T D
        qk = F.linear(rotated, self.qkv_proj.weight[: 2 * width])
        v = F.linear(x, self.qkv_proj.weight[2 * width :])
        qk = self.qk_norm(qk.unflatten(-1, (2, self.num_heads, -1)))
        return self.attend(qk, v.unflatten(-1, (self.num_heads, -1)), layout)


def with_input_rope(model: CoCa, config: CoCaConfig, seed: int) -> None:  # noqa: ARG001
    """Rotate the input of the projections in the image encoder, by the angles that the outputs were rotated by."""
    for block in cast(list[Block], model.image_encoder.blocks):
        assert block.attn.rotary is not None, "the preset has RoPE in the image encoder"
        block.attn = InputRotaryAttention(block.attn, block.attn.rotary)
