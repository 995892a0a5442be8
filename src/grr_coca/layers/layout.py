"""How the tokens of a batch lie, and so where each stands in its sequence and which tokens it sees.

Blocks work on tokens as they lie; only self-attention needs the sequences apart. Every layout has the same two
operations for it: `spread` takes projected tokens to where attention is computed (`spread_queries` does so with
queries alone, for cross-attention), and `gather` brings the result back to where the tokens lie.

Shapes: B sequences, T tokens of the longest, N tokens in all, S tokens that are seen, H heads, Dh width of a head,
* whatever a token is made of.
"""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from grr_coca.layers.cache import KeyValueCache
from grr_coca.layers.scaled_attention import KeyValues, Sees

ROUND_TO = 16
"""Tokens of a packed row come in multiples of this."""

Positions = slice | Int[Tensor, "*B T"]
"""Where tokens stand in their sequences: an index into a table that has a row for every position."""


class Spread(NamedTuple):
    """What attention is computed of: queries, the keys and values that they may see, and which of them they see."""

    queries: Float[Tensor, "B T H Dh"]
    seen: KeyValues
    sees: Sees


@final
class Plain(NamedTuple):
    """Sequences of one length side by side. Every token sees its whole sequence."""

    positions: Positions

    def spread(self, qk: Float[Tensor, "B T 2 H Dh"], v: Float[Tensor, "B T H Dh"]) -> Spread:
        """The tokens lie where attention is computed; queries and keys come side by side."""
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
    """Sequences of different lengths, concatenated into one row without padding. Every token sees its own sequence up
    to itself, unless `sees` says otherwise.

    Token-wise layers run on the row as it is; only attention pads the sequences again. The row is filled up to a
    multiple of 16 with copies of its first token: oneDNN prepares each bf16 product anew for every row count that it
    has not seen, which took a seventh of the demo's step.

    `places`: of each packed token in the padded form, flattened, B · T places; `tokens`: the other way round, with the
    last token of a sequence in the place of its padding; `positions`: of each packed token in its sequence;
    `num_tokens`: how many there are without the copies.
    """

    places: Int[Tensor, " N"]
    tokens: Int[Tensor, "B T"]
    positions: Int[Tensor, " N"]
    num_tokens: int
    sees: Sees = "past"

    def spread(self, qk: Float[Tensor, "1 N 2 H Dh"], v: Float[Tensor, "1 N H Dh"]) -> Spread:
        """Pad the sequences. Padding comes after the tokens of its sequence, so none of them sees it."""
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
    """The layout of sequences of these lengths, at most `longest`, in one row."""
    steps = torch.arange(longest, device=lengths.device)
    places = (steps < lengths[:, None]).flatten().nonzero()[:, 0]
    num_tokens = len(places)
    places = F.pad(places, (0, -num_tokens % ROUND_TO))
    first = lengths.cumsum(0) - lengths
    return Packed(places, first[:, None] + steps.minimum(lengths[:, None] - 1), places % longest, num_tokens)


@final
class Cached(NamedTuple):
    """The next tokens of sequences whose earlier tokens are in the cache of this layer. `sees`: which of the cache's
    slots each new token sees, those of the new tokens among them."""

    cache: KeyValueCache
    positions: slice
    sees: Sees

    def spread(self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"]) -> Spread:
        """Write keys and values into the cache; the new queries may see all that is in it."""
        queries, keys = qk.unbind(2)
        return Spread(queries, self.cache.extend(KeyValues(keys, v)), self.sees)

    def spread_queries(self, q: Float[Tensor, "R T H Dh"]) -> Float[Tensor, "R T H Dh"]:
        """The queries as they are."""
        return q

    def gather(self, mixed: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
        """The result as it is."""
        return mixed


Layout = Plain | Packed | Cached
