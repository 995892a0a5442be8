"""Pre-norm transformer blocks, composed of parts that were built elsewhere.

Shapes: B batch, T tokens, S context tokens, D width, C context width. With a `Packing` the tokens of all sequences
come, and go, as one row.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.layers.attention import Cache, CrossAttention, KeyValues, SelfAttention
from grr_coca.layers.packing import Packing


class Block(nn.Module):
    """Self-attention, then feed-forward, each on the normalized input and added to it."""

    def __init__(self, attn_norm: nn.Module, attn: SelfAttention, ffn_norm: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attn_norm = attn_norm
        self.attn = attn
        self.ffn_norm = ffn_norm
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        positions: Int[Tensor, "*B T"] | None = None,
        cache: Cache | None = None,
        packing: Packing | None = None,
    ) -> Float[Tensor, "B T D"]:
        """One layer; `positions`, `cache` and `packing` as in `SelfAttention`."""
        x = x + self.attn(self.attn_norm(x), positions, cache, packing)
        return x + self.feed_forward(self.ffn_norm(x))


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to a context, then feed-forward."""

    def __init__(
        self,
        attn_norm: nn.Module,
        attn: SelfAttention,
        cross_attn_norm: nn.Module,
        cross_attn: CrossAttention,
        ffn_norm: nn.Module,
        feed_forward: nn.Module,
    ) -> None:
        super().__init__()
        self.attn_norm = attn_norm
        self.attn = attn
        self.cross_attn_norm = cross_attn_norm
        self.cross_attn = cross_attn
        self.ffn_norm = ffn_norm
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Float[Tensor, "R T D"],
        context: Float[Tensor, "B S C"] | KeyValues,
        cache: Cache | None = None,
        packing: Packing | None = None,
    ) -> Float[Tensor, "R T D"]:
        """One layer; the context is taken as it is, normalized by whoever made it."""
        x = x + self.attn(self.attn_norm(x), cache=cache, packing=packing)
        x = x + self.cross_attn(self.cross_attn_norm(x), context, packing)
        return x + self.feed_forward(self.ffn_norm(x))
