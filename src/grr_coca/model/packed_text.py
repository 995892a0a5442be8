"""The captions of a batch without their padding, as both halves of the text decoder run on them.

Shapes: B captions, T positions of the longest, N tokens of all captions, M of them that have a next token: N less
[EOS] and [CLS] of each caption. N and M are rounded up, see `grr_coca.layers.layout.Packed`.
"""

from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from grr_coca.layers.layout import Packed, pack_lengths


class PackedText(NamedTuple):
    """Captions, concatenated into one row. It is made once for a batch and serves both halves.

    `token_ids`: `[BOS] caption [EOS] [CLS]` of each caption; `layout`: that of these N tokens, for the unimodal half;
    `cls`: which of the N tokens is the [CLS] of each caption; `predicting`: which of them have a next token, so go on
    into the multimodal half; `predicting_layout`: the layout of those M tokens.
    """

    token_ids: Int[Tensor, "1 N"]
    layout: Packed
    cls: Int[Tensor, " B"]
    predicting: Int[Tensor, " M"]
    predicting_layout: Packed


def pack_text(token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> PackedText:
    """Drop the padding of captions. `lengths` count [BOS], [EOS] and the [CLS] slot."""
    longest = token_ids.shape[1]
    layout, predicting_layout = pack_lengths(lengths, longest), pack_lengths(lengths - 2, longest - 2)
    predicting = predicting_layout.gather(layout.tokens[:, :-2])[0]
    return PackedText(layout.gather(token_ids), layout, lengths.cumsum(0) - 1, predicting, predicting_layout)
