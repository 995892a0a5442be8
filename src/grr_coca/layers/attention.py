"""Multi-head attention: of a sequence to itself, and to a context.

Shapes: B batch, T tokens, S tokens attended to, D width, C context width, H heads, Dh = D / H, R rows of a decoder.

No biases, in any model: the arms of a comparison differ in their named parts alone.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from grr_coca.layers.layout import PLAIN, KeyValues, Layout
from grr_coca.layers.rotary import Rotary
from grr_coca.layers.scaled_attention import attend


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

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout = PLAIN) -> Float[Tensor, "B T D"]:
        """Mix the tokens of each sequence. A cache says who sees what."""
        positions, cache, packing = layout
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1))  # B T 3 H Dh
        qk, v = self.qk_norm(qkv[:, :, :2]), qkv[:, :, 2]
        if self.rotary is not None:
            qk = self.rotary(qk, positions)
        if packing is not None:
            assert self.causal, "padding would be seen"
            qk, v = packing.pad(qk), packing.pad(v)
        q, k = qk.unbind(2)
        seen, mask = (KeyValues(k, v), None) if cache is None else cache.extend(KeyValues(k, v))
        mixed = _attend(q, seen, mask, self.causal and cache is None)
        return self.out_proj(mixed if packing is None else packing.pack(mixed))


class CrossAttention(nn.Module):
    """Attention of a sequence, or of learned queries, to a context of another width."""

    def __init__(self, embed_dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.kv_proj = nn.Linear(context_dim, 2 * embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def project(self, context: Float[Tensor, "B S C"]) -> KeyValues:
        """Keys and values of a context that will be read more than once."""
        return KeyValues(*self.kv_proj(context).unflatten(-1, (2, self.num_heads, -1)).unbind(2))  # B S H Dh

    def forward(
        self, x: Float[Tensor, "R T D"], context: Float[Tensor, "B S C"] | KeyValues, layout: Layout = PLAIN
    ) -> Float[Tensor, "R T D"]:
        """Every token reads the whole context; R / B rows in a row share one, where there are fewer contexts."""
        packing = layout.packing
        q = self.q_proj(x).unflatten(-1, (self.num_heads, -1))  # R T H Dh
        seen = context if isinstance(context, KeyValues) else self.project(context)
        mixed = _attend(q if packing is None else packing.pad(q), seen)
        return self.out_proj(mixed if packing is None else packing.pack(mixed))


def _attend(
    q: Float[Tensor, "R T H Dh"], seen: KeyValues, mask: Bool[Tensor, "#B 1 L S"] | None = None, causal: bool = False
) -> Float[Tensor, "R T D"]:
    # Rows that share a context become queries of one row: nothing is copied. L = R / B * T.
    queries = q.reshape(len(seen.keys), -1, *q.shape[2:])  # B L H Dh
    q_, k, v = (projected.transpose(1, 2) for projected in (queries, *seen))  # B H · Dh
    mixed = attend(q_, k, v, mask, causal)
    return mixed.transpose(1, 2).reshape(*q.shape[:2], -1)
