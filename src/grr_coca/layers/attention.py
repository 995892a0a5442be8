"""Multi-head attention: of a sequence to itself, and to a context.

Shapes: B batch, T tokens, S tokens attended to, D width, C context width, H heads, Dh = D / H, R rows of a decoder.
With a `Packing` the tokens of all sequences come, and go, as one row.

No biases, in any model: the arms of a comparison differ in their named parts alone.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grr_coca.layers.packing import Packing
from grr_coca.layers.rotary import Rotary


class KeyValues(NamedTuple):
    """What is attended to, projected."""

    keys: Float[Tensor, "B S H Dh"]
    values: Float[Tensor, "B S H Dh"]


@runtime_checkable
class Cache(Protocol):
    """Keys and values of what one layer has seen. `positions`: where the new tokens stand."""

    positions: Int[Tensor, " T"]

    def extend(self, new: KeyValues) -> tuple[KeyValues, Bool[Tensor, "#B 1 L S"] | None]:
        """Add those of the new tokens; all that there are, and which of them each token may see (None: all)."""


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
        self,
        x: Float[Tensor, "B T D"],
        positions: Int[Tensor, "*B T"] | None = None,
        cache: Cache | None = None,
        packing: Packing | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Mix the tokens of each sequence; `positions` as in `Rotary`, or those that a cache or a packing has.

        A cache says who sees what. Packed sequences are told apart by a causal mask alone.
        """
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1))  # B T 3 H Dh
        qk, v = self.qk_norm(qkv[:, :, :2]), qkv[:, :, 2]
        if self.rotary is not None:
            qk = self.rotary(qk, _positions(positions, cache, packing))
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
        self,
        x: Float[Tensor, "R T D"],
        context: Float[Tensor, "B S C"] | KeyValues,
        packing: Packing | None = None,
    ) -> Float[Tensor, "R T D"]:
        """Every token reads the whole context; R / B rows in a row share one, where there are fewer contexts."""
        q = self.q_proj(x).unflatten(-1, (self.num_heads, -1))  # R T H Dh
        seen = context if isinstance(context, KeyValues) else self.project(context)
        mixed = _attend(q if packing is None else packing.pad(q), seen)
        return self.out_proj(mixed if packing is None else packing.pack(mixed))


def _positions(positions: Tensor | None, cache: Cache | None, packing: Packing | None) -> Int[Tensor, "*B T"] | None:
    if packing is not None:
        return packing.positions
    return positions if cache is None else cache.positions


def _attend(
    q: Float[Tensor, "R T H Dh"], seen: KeyValues, mask: Bool[Tensor, "#B 1 L S"] | None = None, causal: bool = False
) -> Float[Tensor, "R T D"]:
    # Rows that share a context become queries of one row: nothing is copied. L = R / B * T.
    queries = q.reshape(len(seen.keys), -1, *q.shape[2:])  # B L H Dh
    q_, k, v = (projected.transpose(1, 2) for projected in (queries, *seen))  # B H · Dh
    mixed = F.scaled_dot_product_attention(q_, k, v, attn_mask=mask, is_causal=causal)
    return mixed.transpose(1, 2).reshape(*q.shape[:2], -1)
