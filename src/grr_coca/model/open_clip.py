"""The parts that only open_clip's CoCa has.

Shapes: B batch, R rows of a decoder, T tokens, S context tokens, D width, C context width, P patch tokens, Q queries.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.attention import CrossAttention
from grr_coca.layers.block import Block
from grr_coca.layers.layout import Layout
from grr_coca.layers.pooler import Pooled, Pooler
from grr_coca.layers.scaled_attention import KeyValues


class ClassToken(nn.Module):
    """Appends a learned token, to which the learned vector of its position is added."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(embed_dim))
        self.position = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T+1 D"]:
        """The tokens of x, and the class token after them."""
        token = (self.embedding + self.position).to(x.dtype)
        return torch.cat([x, token.expand(len(x), 1, -1)], dim=1)


class ChannelAffine(nn.Module):
    """`x * weight + bias` by channel: the second half of a LayerNorm, for inputs that are normalized already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Scale and shift every channel."""
        return x * self.weight + self.bias


class TwoStepCrossBlock(nn.Module):
    """open_clip's layer: a whole `Block`, then cross-attention to a context, then a second feed-forward."""

    def __init__(
        self,
        *,
        block: Block,
        cross_attn_norm: nn.Module,
        cross_attn: CrossAttention,
        ffn_norm: nn.Module,
        feed_forward: nn.Module,
    ) -> None:
        super().__init__()
        self.block = block
        self.cross_attn_norm = cross_attn_norm
        self.cross_attn = cross_attn
        self.ffn_norm = ffn_norm
        self.feed_forward = feed_forward

    def forward(
        self, x: Float[Tensor, "R T D"], context: Float[Tensor, "B S C"] | KeyValues, layout: Layout
    ) -> Float[Tensor, "R T D"]:
        """One layer. The context must be normalized already."""
        x = self.block(x, layout)
        x = x + self.cross_attn(self.cross_attn_norm(x), context, layout)
        return x + self.feed_forward(self.ffn_norm(x))


def shared(captioning_pooler: Pooler, contrastive_pooler: Pooler, patches: Float[Tensor, "B P C"]) -> Pooled:
    """The first query of the captioning pooler also serves as the contrastive pooler (open_clip)."""
    tokens = captioning_pooler(patches)
    return Pooled(tokens[:, 1:], contrastive_pooler(tokens[:, :1]))
