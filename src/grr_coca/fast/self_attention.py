"""Self-attention for the few tokens of a decoding step, in as few operations as possible.

One decoding step of one caption takes a hundred products, each a fraction of a millisecond long. So the time between
the products matters too.

Shapes: R rows of captions, T new tokens, B lines of slots, L = R / B * T, S slots, D width, H heads, Dh = D / H.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.attention import SelfAttention
from grr_coca.layers.layout import Cached, Layout
from grr_coca.layers.scaled_attention import scaled_attention


class FastSelfAttention(nn.Module):
    """`SelfAttention` that rotates queries and keys in place, and writes keys and values into the cache together."""

    def __init__(self, attn: SelfAttention) -> None:
        super().__init__()
        self.attn = attn
        self.qk_norm = None if isinstance(attn.qk_norm, nn.Identity) else attn.qk_norm
        self.turns = None if attn.rotary is None else attn.rotary.table[:, None, None]  # T 1 1 C

    def forward(self, x: Float[Tensor, "R T D"], layout: Layout) -> Float[Tensor, "R T D"]:
        """As in `SelfAttention`."""
        if not isinstance(layout, Cached):
            return self.attn(x, layout)
        num_rows, num_tokens, _ = x.shape
        qkv = self.attn.qkv_proj(x).view(num_rows, num_tokens, 3, self.attn.num_heads, -1)
        if self.qk_norm is not None:
            qkv[:, :, :2] = self.qk_norm(qkv[:, :, :2])
        if self.turns is not None:
            pairs = torch.view_as_complex(qkv.view(*qkv.shape[:-1], -1, 2))  # R T 3 H C
            pairs[:, :, :2].mul_(self.turns[layout.positions])
        keys, values = layout.cache.write(qkv[:, :, 1:])  # B H S Dh
        q = qkv[:, :, 0].reshape(len(keys), -1, *qkv.shape[3:]).transpose(1, 2)  # B H L Dh
        mixed = scaled_attention(q, keys, values, layout.sees)
        return self.attn.out_proj(mixed.transpose(1, 2).reshape(x.shape))
