"""Multi-head attention: of a sequence to itself, and to a context.

Shapes: B batch, T tokens, S context tokens, D width, C context width, H heads, Dh = D / H.

No biases, in any model: the arms of a comparison differ in their named parts alone.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.layers.rotary import Rotary


class SelfAttention(nn.Module):
    """Attention of a sequence to itself; with `causal`, to no later token.

    `qk_norm` normalizes the queries and keys of each head (arXiv 2302.05442), or leaves them; then `rotary` turns
    them; None leaves positions to the embeddings.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, causal: bool, rotary: Rotary | None, qk_norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.rotary = rotary
        self.qk_norm = qk_norm or nn.Identity()
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(
        self, x: Float[Tensor, "B T D"], positions: Int[Tensor, "*B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Mix the tokens of each sequence; `positions` as in `Rotary`."""
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1))  # B T 3 H Dh
        qk, v = self.qk_norm(qkv[:, :, :2]), qkv[:, :, 2]
        if self.rotary is not None:
            qk = self.rotary(qk, positions)
        q, k = qk.unbind(2)
        return self.out_proj(_attend(q, k, v, self.causal))


class CrossAttention(nn.Module):
    """Attention of a sequence, or of learned queries, to a context of another width."""

    def __init__(self, embed_dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.kv_proj = nn.Linear(context_dim, 2 * embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x: Float[Tensor, "B T D"], context: Float[Tensor, "B S C"]) -> Float[Tensor, "B T D"]:
        """Every token reads the whole context."""
        q = self.q_proj(x).unflatten(-1, (self.num_heads, -1))  # B T H Dh
        k, v = self.kv_proj(context).unflatten(-1, (2, self.num_heads, -1)).unbind(2)  # B S H Dh
        return self.out_proj(_attend(q, k, v, causal=False))


def _attend(
    q: Float[Tensor, "B T H Dh"], k: Float[Tensor, "B S H Dh"], v: Float[Tensor, "B S H Dh"], causal: bool
) -> Float[Tensor, "B T D"]:
    q, k, v = (projected.transpose(1, 2) for projected in (q, k, v))  # B H T Dh
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)
