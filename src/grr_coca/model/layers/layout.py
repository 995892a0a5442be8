"""The layout of the tokens of a batch: how their sequences lie in a tensor, and which tokens each may attend to.

Token-wise layers work on the tokens as they lie. Only attention needs the sequences separated. Every layout prepares
tokens for it (`attention_inputs` for self-attention, `pad` for the queries of cross-attention) and brings the result
back (`unpad`).

| layout | tokens lie | used by |
|---|---|---|
| `PlainLayout` | as B sequences of one length | image encoder, poolers |
| `PackedLayout` | in one row, without padding | text decoders in training |
| `CachedLayout` | as the next tokens of R captions | decoding |

Shapes: B sequences, R rows of captions, T tokens of the longest sequence, N tokens in all, H heads, Dh width of a head,
D width, * any dimensions of a token.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from grr_coca.model.layers.scaled_attention import Cache, KeyValues, Mask

ROUND_TO = 16
"""The number of tokens of a packed row is a multiple of this."""

Positions = slice | Int[Tensor, "*B T"]
"""Positions of tokens in their sequences: an index into a table that has a row for every position."""


class AttentionInputs(NamedTuple):
    """Queries, the keys and values that they may attend to, and the attention mask."""

    queries: Float[Tensor, "B T H Dh"]
    key_values: KeyValues
    mask: Mask


@final
class PlainLayout(NamedTuple):
    """Sequences of one length side by side. Every token attends to its whole sequence."""

    positions: Positions
    mask: Mask = "all"

    def attention_inputs(self, qk: Float[Tensor, "B T 2 H Dh"], v: Float[Tensor, "B T H Dh"]) -> AttentionInputs:
        """Separate queries and keys, which come in one tensor. No padding is needed."""
        queries, keys = qk.unbind(2)
        return AttentionInputs(queries, KeyValues(keys, v), self.mask)

    def pad(self, q: Shaped[Tensor, "B T *x"]) -> Shaped[Tensor, "B T *x"]:
        """Return the queries unchanged: sequences of one length need no padding."""
        return q

    def unpad(self, mixed: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the result unchanged, because nothing was padded."""
        return mixed


PLAIN = PlainLayout(slice(None))
"""The layout of sequences that fill every position."""


class PackedLayout(NamedTuple):
    """Sequences of different lengths, concatenated into one row without padding. Every token attends to the tokens of
    its own sequence up to and including itself, unless `mask` says otherwise.

    Token-wise layers run on the row as it is; only attention pads the sequences again. The row is filled up to a
    multiple of 16 with copies of its first token. oneDNN prepares each bf16 product for every row count that it has
    not seen, which took a seventh of the demo's step.

    - `unpad_index`: the index of each packed token among the B · T tokens of the padded form
    - `pad_index`: the packed token at each place of the padded form; padding repeats the last token of its sequence
    - `positions`: the position of each packed token in its sequence
    - `num_tokens`: the number of packed tokens, without the copies
    """

    unpad_index: Int[Tensor, " N"]
    pad_index: Int[Tensor, "B T"]
    positions: Int[Tensor, " N"]
    num_tokens: int
    mask: Mask = "causal"

    @property
    def last_tokens(self) -> Int[Tensor, " B"]:
        """The last packed token of each sequence."""
        return self.pad_index[:, -1]

    def attention_inputs(self, qk: Float[Tensor, "1 N 2 H Dh"], v: Float[Tensor, "1 N H Dh"]) -> AttentionInputs:
        """Pad the sequences. Padding comes after the tokens of its sequence, and attention is causal, so no token
        attends to padding."""
        queries, keys = self.pad(qk).unbind(2)
        return AttentionInputs(queries, KeyValues(keys, self.pad(v)), self.mask)

    def pad(self, packed: Shaped[Tensor, "1 N *x"]) -> Shaped[Tensor, "B T *x"]:
        """Pad the sequences to the longest."""
        return packed[0].index_select(0, self.pad_index.flatten()).unflatten(0, self.pad_index.shape)

    def unpad(self, padded: Shaped[Tensor, "B T *x"]) -> Shaped[Tensor, "1 N *x"]:
        """Drop the padding."""
        return padded.flatten(0, 1).index_select(0, self.unpad_index)[None]


def pack_lengths(lengths: Int[Tensor, " B"], longest: int, device: torch.device) -> PackedLayout:
    """The packed layout of sequences of these lengths, none of them longer than `longest`.

    Args:
        lengths: on the CPU, or on `device`; reading the number of tokens then waits for it.
        longest: number of columns of the padded form.
        device: device of the tokens.
    """
    num_tokens = int(lengths.sum())
    lengths = lengths.to(device, non_blocking=True)
    first = lengths.cumsum(0) - lengths
    # The size is known, so a GPU is not waited for, as `nonzero` would.
    sequences = torch.repeat_interleave(lengths, output_size=num_tokens)
    positions = torch.arange(num_tokens, device=device) - first[sequences]
    unpad_index = F.pad(sequences * longest + positions, (0, -num_tokens % ROUND_TO))
    steps = torch.arange(longest, device=device)
    pad_index = first[:, None] + steps.minimum(lengths[:, None] - 1)
    return PackedLayout(unpad_index, pad_index, unpad_index % longest, num_tokens)


LayoutOf = Callable[[Int[Tensor, " B"], int, torch.device], PackedLayout]
"""`pack_lengths`, or another function that lays out sequences of given lengths."""


@final
class CachedLayout(NamedTuple):
    """The next tokens of sequences whose earlier tokens are in the cache of this layer. `mask`: which slots of the
    cache each new token attends to, after the new tokens were written into it."""

    cache: Cache
    positions: Positions
    mask: Mask

    def attention_inputs(self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"]) -> AttentionInputs:
        """Write the new keys and values into the cache. The new queries may attend to everything in it."""
        queries, keys = qk.unbind(2)
        return AttentionInputs(queries, self.cache.extend(KeyValues(keys, v)), self.mask)

    def pad(self, q: Shaped[Tensor, "R T *x"]) -> Shaped[Tensor, "R T *x"]:
        """Return the queries unchanged: every caption has the same number of new tokens."""
        return q

    def unpad(self, mixed: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
        """Return the result unchanged, because nothing was padded."""
        return mixed


Layout = PlainLayout | PackedLayout | CachedLayout
