"""The text decoder. Its unimodal half reads captions and does not see the image. Its multimodal half continues from
there, and attends to the image. Both run on the captions of a batch without their padding.

Shapes: B captions, T positions of the longest caption, N tokens of all captions, M tokens that have a next token (all
but [EOS] and [CLS] of each caption), L = M, D width, Q image tokens of width C, V vocabulary. N and L are rounded up,
see `grr_coca.layers.layout.Packed`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

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


class TextDecoderOutput(NamedTuple):
    """`cls`: the normalized output at the [CLS] of each caption. `tokens`: the residual stream of all tokens that have
    a next token. The multimodal half continues from it."""

    cls: Float[Tensor, "B D"]
    tokens: Float[Tensor, "1 M D"]


class TextDecoder(nn.Module):
    """Causal blocks over `[BOS] caption [EOS] [CLS]`.

    [CLS] is a learned vector, not a word. It comes last, where it sees the whole caption. `pack` converts captions to
    the form that `forward` takes.
    """

    def __init__(
        self,
        *,
        context_length: int,
        pack: PackText,
        tok_embeddings: nn.Embedding,
        position: nn.Module,
        blocks: nn.ModuleList,
        cls_norm: nn.Module,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.pack = pack
        self.tok_embeddings = tok_embeddings
        self.cls_embedding = nn.Parameter(torch.zeros(tok_embeddings.embedding_dim))
        self.position = position
        self.blocks = blocks
        self.cls_norm = cls_norm

    def forward(self, text: PackedText) -> TextDecoderOutput:
        """Run the captions of a batch through all blocks."""
        x = self.tok_embeddings(text.token_ids)  # 1 N D
        x = x.index_copy(1, text.cls, self.cls_embedding.to(x.dtype).expand(1, len(text.cls), -1))
        x = self.position(x, text.layout.positions)
        for block in self.blocks:
            x = block(x, text.layout)
        return TextDecoderOutput(self.cls_norm(x[0].index_select(0, text.cls)), x.index_select(1, text.predicting))


class MultimodalDecoder(nn.Module):
    """Causal blocks with cross-attention to the image, a final norm, and the head that predicts the next token.

    `image_norm` normalizes the image tokens for the blocks, or leaves them as they are.

    `forward` stops before the head. The M × V logits would be the largest tensor of a training step, so the loss
    computes them for some tokens at a time.
    """

    def __init__(self, image_norm: nn.Module, blocks: nn.ModuleList, norm: nn.Module, lm_head: nn.Linear) -> None:
        super().__init__()
        self.image_norm = image_norm
        self.blocks = blocks
        self.norm = norm
        self.lm_head = lm_head

    def forward(
        self, text_tokens: Float[Tensor, "1 L D"], image_tokens: Float[Tensor, "B Q C"], layout: Packed
    ) -> Float[Tensor, "M D"]:
        """States from which `lm_head` predicts the next tokens, caption after caption."""
        x, context = text_tokens, self.image_norm(image_tokens)
        for block in self.blocks:
            x = block(x, context, layout)
        return self.norm(x[0, : layout.num_tokens])
