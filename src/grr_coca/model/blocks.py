"""Pre-norm transformer blocks. Their parts are built elsewhere and passed in.

Shapes: B batch, R rows of a decoder, T tokens, S context tokens, D width, C context width.
"""

from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.model.attention import CrossAttention, KeyValues, Layout, SelfAttention


class Block(nn.Module):
    """Self-attention, then feed-forward. Each reads the normalized tokens and adds its result to the tokens."""

    def __init__(self, attn_norm: nn.Module, attn: SelfAttention, ffn_norm: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attn_norm = attn_norm
        self.attn = attn
        self.ffn_norm = ffn_norm
        self.feed_forward = feed_forward

    @property
    def branches(self) -> tuple[nn.Module, ...]:
        """The layers whose results are added to the tokens. The matrix that ends each is initialised smaller."""
        return self.attn, self.feed_forward

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        """Run the block. `layout`: which tokens form a sequence, and which of them each token attends to."""
        x = x + self.attn(self.attn_norm(x), layout)
        return x + self.feed_forward(self.ffn_norm(x))


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to a context, then feed-forward."""

    def __init__(
        self,
        *,
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

    @property
    def branches(self) -> tuple[nn.Module, ...]:
        """As in `Block`."""
        return self.attn, self.cross_attn, self.feed_forward

    def forward(
        self, x: Float[Tensor, "R T D"], context: Float[Tensor, "B S C"] | KeyValues, layout: Layout
    ) -> Float[Tensor, "R T D"]:
        """Run the block. The context must be normalized already."""
        x = x + self.attn(self.attn_norm(x), layout)
        x = x + self.cross_attn(self.cross_attn_norm(x), context, layout)
        return x + self.feed_forward(self.ffn_norm(x))
