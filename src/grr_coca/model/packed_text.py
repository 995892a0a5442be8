"""The captions of a batch without their padding. Both halves of the text decoder run on this form.

Shapes: B captions, T positions of the longest caption, N tokens of all captions, M tokens that have a next token (all
but [EOS] and [CLS] of each caption). N and M are rounded up, see `grr_coca.layers.layout.Packed`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from grr_coca.layers.layout import Packed, pack_lengths


class PackedText(NamedTuple):
    """Captions, concatenated into one row. Made once for a batch; both halves of the text decoder use it.

    - `token_ids`: `[BOS] caption [EOS] [CLS]` of each caption
    - `layout`: the layout of these N tokens, for the unimodal half
    - `cls`: the index of each caption's [CLS] among the N tokens
    - `predicting`: the indices of the M tokens that have a next token. They go on into the multimodal half
    - `predicting_layout`: the layout of these M tokens
    """

    token_ids: Int[Tensor, "1 N"]
    layout: Packed
    cls: Int[Tensor, " B"]
    predicting: Int[Tensor, " M"]
    predicting_layout: Packed


PackText = Callable[[Int[Tensor, "B T"], Int[Tensor, " B"]], PackedText]
"""A function that packs padded captions, given their token ids and lengths. Lengths include [BOS], [EOS] and [CLS]."""


def pack_text(token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> PackedText:
    """Pack padded captions. `lengths` include [BOS], [EOS] and the [CLS] slot."""
    longest = token_ids.shape[1]
    layout, predicting_layout = pack_lengths(lengths, longest), pack_lengths(lengths - 2, longest - 2)
    predicting = predicting_layout.gather(layout.tokens[:, :-2])[0]
    return PackedText(layout.gather(token_ids), layout, lengths.cumsum(0) - 1, predicting, predicting_layout)


PADDING = 0
"""Id that fills the rows of captions, also in the [CLS] slot. In CLIP's vocabulary it is also a token: "!" before a
symbol."""


def pack_text_cls_last(token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"], context_length: int) -> PackedText:
    """`pack_text` for open_clip's CoCa, which was trained with captions padded to the context and [CLS] at its end.

    Its mask is off by one: it hides every token that follows a padding token, instead of the padding itself. So [CLS]
    sees the first padding token, and does not see itself, unless the caption fills the context. This padding token is
    kept here, and all other padding is dropped. A word with id 0 hides the token after it in the same way (as in
    open_clip 3).
    """
    longest = min(token_ids.shape[1] + 1, context_length)
    steps = torch.arange(longest, device=token_ids.device)
    token_ids = F.pad(token_ids, (0, 1))[:, :longest].masked_fill(steps >= lengths[:, None] - 1, PADDING)
    with_padding = (lengths + 1).clamp(max=context_length)
    layout, predicting_layout = pack_lengths(with_padding, longest), pack_lengths(lengths - 2, longest - 2)
    predicting = predicting_layout.gather(layout.tokens[:, :-2])[0]
    cls = with_padding.cumsum(0) - 1
    hidden = F.pad(token_ids[:, :-1] == PADDING, (1, 0))  # B T
    past = steps <= steps[:, None]  # T T
    layout = layout._replace(
        positions=layout.positions.index_fill(0, cls, context_length - 1), sees=past & ~hidden[:, None, None]
    )
    return PackedText(layout.gather(token_ids), layout, cls, predicting, predicting_layout)
