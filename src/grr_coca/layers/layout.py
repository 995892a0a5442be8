"""The layout of the tokens of a batch: where each token lies, its position in its sequence, and which tokens it sees.

Token-wise layers work on the tokens as they lie. Only attention needs the sequences separated. Every layout has the
same two operations for it: spread moves projected tokens to the form in which attention is computed, and gather
brings the result back.

Spread has two forms, because the two kinds of attention have different keys. In self-attention the keys and values are
those of the same tokens, so `spread` moves all three together, and a cache takes them in. In cross-attention they are
the image's, whatever the layout of the text, so `spread_queries` moves the queries alone.

Shapes: B sequences, T tokens of the longest sequence, N tokens in all, S tokens that are seen, H heads, Dh width of a
head, * any dimensions of a token.
"""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from grr_coca.layers.scaled_attention import KeyValueCache, KeyValues, Sees

ROUND_TO = 16
"""The number of tokens of a packed row is a multiple of this."""

Positions = slice | Int[Tensor, "*B T"]
"""Positions of tokens in their sequences: an index into a table that has a row for every position."""


class Spread(NamedTuple):
    """The inputs of attention: queries, keys and values, and which keys each query sees."""

    queries: Float[Tensor, "B T H Dh"]
    seen: KeyValues
    sees: Sees


@final
class Plain(NamedTuple):
    """Sequences of one length side by side. Every token sees its whole sequence."""

    positions: Positions

    def spread(self, qk: Float[Tensor, "B T 2 H Dh"], v: Float[Tensor, "B T H Dh"]) -> Spread:
        """Separate queries and keys, which come in one tensor. The tokens stay where they are."""
        queries, keys = qk.unbind(2)
        return Spread(queries, KeyValues(keys, v), "all")

    def spread_queries(self, q: Float[Tensor, "B T H Dh"]) -> Float[Tensor, "B T H Dh"]:
        """The queries as they are."""
        return q

    def gather(self, mixed: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The result as it is."""
        return mixed


PLAIN = Plain(slice(None))
"""The layout of sequences that fill every position."""


@final
class Packed(NamedTuple):
    """Sequences of different lengths, concatenated into one row without padding. Every token sees the tokens of its own
    sequence up to and including itself, unless `sees` says otherwise.

    Token-wise layers run on the row as it is; only attention pads the sequences again. The row is filled up to a
    multiple of 16 with copies of its first token. oneDNN prepares each bf16 product for every row count that it has
    not seen, which took a seventh of the demo's step.

    `places`: the place of each packed token among the B · T places of the padded form. `tokens`: the packed token at
    each place of the padded form; padding repeats the last token of its sequence. `positions`: the position of each
    packed token in its sequence. `num_tokens`: the number of packed tokens, without the copies.
    """

    places: Int[Tensor, " N"]
    tokens: Int[Tensor, "B T"]
    positions: Int[Tensor, " N"]
    num_tokens: int
    sees: Sees = "past"

    @property
    def last_tokens(self) -> Int[Tensor, " B"]:
        """The last packed token of each sequence."""
        return self.tokens[:, -1]

    def spread(self, qk: Float[Tensor, "1 N 2 H Dh"], v: Float[Tensor, "1 N H Dh"]) -> Spread:
        """Pad the sequences. Padding comes after the tokens of its sequence, and attention is causal, so no token sees
        padding."""
        queries, keys = self._pad(qk).unbind(2)
        return Spread(queries, KeyValues(keys, self._pad(v)), self.sees)

    def spread_queries(self, q: Float[Tensor, "1 N H Dh"]) -> Float[Tensor, "B T H Dh"]:
        """Pad the sequences."""
        return self._pad(q)

    def gather(self, padded: Shaped[Tensor, "B T *x"]) -> Shaped[Tensor, "1 N *x"]:
        """Drop the padding."""
        return padded.flatten(0, 1).index_select(0, self.places)[None]

    def _pad(self, packed: Shaped[Tensor, "1 N *x"]) -> Shaped[Tensor, "B T *x"]:
        return packed[0].index_select(0, self.tokens.flatten()).unflatten(0, self.tokens.shape)


def pack_lengths(lengths: Int[Tensor, " B"], longest: int) -> Packed:
    """The packed layout of sequences of these lengths, none of them longer than `longest`."""
    steps = torch.arange(longest, device=lengths.device)
    places = (steps < lengths[:, None]).flatten().nonzero()[:, 0]
    num_tokens = len(places)
    places = F.pad(places, (0, -num_tokens % ROUND_TO))
    first = lengths.cumsum(0) - lengths
    return Packed(places, first[:, None] + steps.minimum(lengths[:, None] - 1), places % longest, num_tokens)


@final
class Cached(NamedTuple):
    """The next tokens of sequences whose earlier tokens are in the cache of this layer. `sees`: which slots of the
    cache each new token sees, after the new tokens were written into it."""

    cache: KeyValueCache
    positions: slice
    sees: Sees

    def spread(self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"]) -> Spread:
        """Write the new keys and values into the cache. The new queries may see everything in it."""
        queries, keys = qk.unbind(2)
        return Spread(queries, self.cache.extend(KeyValues(keys, v)), self.sees)

    def spread_queries(self, q: Float[Tensor, "R T H Dh"]) -> Float[Tensor, "R T H Dh"]:
        """The queries as they are."""
        return q

    def gather(self, mixed: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
        """The result as it is."""
        return mixed


Layout = Plain | Packed | Cached
