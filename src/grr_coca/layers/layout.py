"""How the tokens of a batch lie: what blocks must know besides the tokens.

Shapes: B sequences, T tokens of the longest, N tokens in all, L queries of a sequence, S tokens attended to, H heads,
Dh width of a head, * what a token is made of.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

ROUND_TO = 16
"""Tokens of a packed row come in multiples of this."""


class KeyValues(NamedTuple):
    """What is attended to, projected."""

    keys: Float[Tensor, "B S H Dh"]
    values: Float[Tensor, "B S H Dh"]


@runtime_checkable
class Cache(Protocol):
    """Keys and values of what one layer has seen."""

    def extend(self, new: KeyValues) -> tuple[KeyValues, Bool[Tensor, "#B 1 L S"] | None]:
        """Add those of the new tokens; all that there are, and which of them each token may see (None: all)."""


class Packing(NamedTuple):
    """Sequences of different lengths in one row, without padding: whatever looks at each token by itself does no work
    for it. Attention alone needs the sequences apart, and gets them padded.

    Copies of the first token fill the row, behind the `num_tokens` that count, up to a multiple of 16: for each number
    of rows that it has not seen, oneDNN plans its products in bf16 anew, a seventh of the demo's step.

    `places`: of each packed token in the padded form, flattened, B · T places; `tokens`: the other way round, with
    any token in the place of padding; `positions`: of each packed token in its sequence.
    """

    places: Int[Tensor, " N"]
    tokens: Int[Tensor, "B T"]
    positions: Int[Tensor, " N"]
    num_tokens: int

    def pack(self, padded: Shaped[Tensor, "B T *x"]) -> Shaped[Tensor, "1 N *x"]:
        """Drop the padding."""
        return padded.flatten(0, 1).index_select(0, self.places)[None]

    def pad(self, packed: Shaped[Tensor, "1 N *x"]) -> Shaped[Tensor, "B T *x"]:
        """Put the sequences apart. What stands in the place of padding comes after the real tokens of its row, so a
        causal mask hides it, and `pack` drops it."""
        return packed[0].index_select(0, self.tokens.flatten()).unflatten(0, self.tokens.shape)


def pack_lengths(lengths: Int[Tensor, " B"], longest: int) -> Packing:
    """The packing of sequences of these lengths, at most `longest`."""
    steps = torch.arange(longest, device=lengths.device)
    places = (steps < lengths[:, None]).flatten().nonzero()[:, 0]
    num_tokens = len(places)
    places = F.pad(places, (0, -num_tokens % ROUND_TO))
    first = lengths.cumsum(0) - lengths
    # Padding repeats the last token of its sequence.
    return Packing(places, first[:, None] + steps.minimum(lengths[:, None] - 1), places % longest, num_tokens)


class Layout(NamedTuple):
    """How tokens lie. `positions`: where they stand, if not at 0 … T-1; `cache`: what came before them; `packing`: they
    are those of many sequences, in a single row, and are so given back."""

    positions: Int[Tensor, "*B T"] | None = None
    cache: Cache | None = None
    packing: Packing | None = None

    @classmethod
    def packed(cls, packing: Packing) -> "Layout":
        """That of packed sequences."""
        return cls(packing.positions, packing=packing)


PLAIN = Layout()
