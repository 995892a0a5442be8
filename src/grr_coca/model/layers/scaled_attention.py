"""Scaled dot-product attention, and the cache of keys and values that decoding keeps between its steps.

Shapes: B batch (or lines of slots of a cache), R rows of captions, T new tokens, H heads, L queries, S keys (or filled
slots), Dh width of a head.
"""

from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KeyValues(NamedTuple):
    """Projected keys and values of one attention layer."""

    keys: Float[Tensor, "B S H Dh"]
    values: Float[Tensor, "B S H Dh"]


Mask = Literal["all", "causal"] | Bool[Tensor, "#B 1 #L S"]
"""The keys that a query attends to: all, those up to its own position (then L = S), or those where a tensor is True."""


def scaled_attention(
    q: Float[Tensor, "B H L Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"], mask: Mask
) -> Float[Tensor, "B H L Dh"]:
    """For every query, the mean of the values that it attends to, weighted by the softmax of q · k / √Dh."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _as_products(q, k, v, mask)
    attn_mask = mask if isinstance(mask, Tensor) else None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, is_causal=attn_mask is None and mask == "causal"
    )


def _as_products(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention as plain matrix products, with scores in the precision of the queries.

    For CoCa's short sequences in bf16 on a CPU, the forward pass takes about two thirds of the time of PyTorch's fused
    kernel, and the backward pass a tenth to a half (`benchmarks/LOG.md`). In fp32 both take the same time.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if isinstance(mask, Tensor):
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask == "causal":
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~past, -torch.inf)
    return scores.softmax(-1, dtype=v.dtype) @ v


class Cache(Protocol):
    """Keys and values of the earlier tokens of captions in one attention layer."""

    def extend(self, new: KeyValues) -> KeyValues:
        """Append keys and values, and return all of them."""


class KeyValueCache:
    """Keys and values of one attention layer, in buffers of a fixed size (2 B H num_slots Dh).

    A caption that is decoded independently has its own line of slots, one slot for each token. The beams of an image
    share one line: their new tokens take the next slots, side by side, and a mask says which slots are the past of
    each beam. When a beam continues another beam, only a row of the mask changes. No key or value moves.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.filled = 0
        self._buffer: Tensor | None = None

    def extend(self, new: KeyValues) -> KeyValues:
        """Append keys and values to the cache, and return all of them. If there are more rows than lines, the
        neighbouring rows of a line take its next slots."""
        keys, values = self.write(torch.stack(new, dim=2))
        return KeyValues(keys.transpose(1, 2), values.transpose(1, 2))

    def write(self, new: Float[Tensor, "R T 2 H Dh"]) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        """`extend` for keys and values in one tensor. The heads of the result come before the slots."""
        if self._buffer is None:
            num_lines, _, _, num_heads, head_dim = new.shape
            self._buffer = new.new_empty(2, num_lines, num_heads, self.num_slots, head_dim)
        _, num_lines, num_heads, _, head_dim = self._buffer.shape
        rows = new.reshape(num_lines, -1, 2, num_heads, head_dim)  # B L 2 H Dh
        start, self.filled = self.filled, self.filled + rows.shape[1]
        self._buffer[:, :, :, start : self.filled] = rows.permute(2, 0, 3, 1, 4)
        keys, values = self._buffer[:, :, :, : self.filled].unbind(0)
        return keys, values

    def select(self, lines: Int[Tensor, " B"]) -> None:
        """Keep the given lines of the cache, in the given order. A line may occur several times."""
        if self._buffer is not None:
            old = self._buffer
            self._buffer = old.new_empty(2, lines.shape[0], *old.shape[2:])
            self._buffer[:, :, :, : self.filled] = old[:, :, :, : self.filled].index_select(1, lines)
