"""Sequences of different lengths in one row, without padding: whatever looks at each token by itself does no work
for padding. Attention alone needs the sequences apart, and gets them padded.

Shapes: B sequences, T tokens of the longest, N tokens in all, * what a token is made of.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


class Packing(NamedTuple):
    """Which token stands where.

    `places`: of each packed token in the padded form, flattened, B · T places; `tokens`: the other way round, with
    any token in the place of padding; `positions`: of each packed token in its sequence.
    """

    places: Int[Tensor, " N"]
    tokens: Int[Tensor, "B T"]
    positions: Int[Tensor, " N"]

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
    first = lengths.cumsum(0) - lengths
    # Padding repeats the last token of its sequence.
    return Packing(places, first[:, None] + steps.minimum(lengths[:, None] - 1), places % longest)
