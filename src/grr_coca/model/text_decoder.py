"""The text decoder: a unimodal half, which reads only the caption, and a multimodal half, which attends to the image.

The second continues from the tokens of the first. Both run on the captions of a batch without their padding.

Shapes: B captions, T positions of the longest caption, N tokens of all captions, M tokens that have a next token (all
but [EOS] and [CLS] of each caption), L: M rounded up, D width, Q image tokens of width C, V vocabulary. N is rounded up
too, see `grr_coca.model.attention.PackedLayout`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.model.attention import LayoutOf, PackedLayout, pack_lengths

PADDING = 0
"""Token id of padding and of the [CLS] slot. In CLIP's vocabulary it is also that of a word, "!" before a symbol."""


class PackedText(NamedTuple):
    """The captions of a batch, concatenated into one row. Both halves of the text decoder use it.

    - `token_ids`: `[BOS] caption [EOS] [CLS]` of each caption
    - `layout`: the layout of these N tokens, for the unimodal half
    - `cls`: the index of each caption's [CLS] among the N tokens
    - `predicting`: the indices of the tokens that have a next token. The multimodal half continues with them
    - `predicting_layout`: the layout of these tokens
    """

    token_ids: Int[Tensor, "1 N"]
    layout: PackedLayout
    cls: Int[Tensor, " B"]
    predicting: Int[Tensor, " L"]
    predicting_layout: PackedLayout

    @classmethod
    def of(cls, token_ids: Int[Tensor, "B T"], layout: PackedLayout, predicting_layout: PackedLayout) -> "PackedText":
        """Pack padded captions. In `layout`, [CLS] must be the last token of each caption."""
        predicting = predicting_layout.unpad(layout.pad_index[:, :-2])[0]
        return cls(layout.unpad(token_ids), layout, layout.last_tokens, predicting, predicting_layout)


class TextDecoderOutput(NamedTuple):
    """Output of the unimodal half. `cls`: the normalized output at the [CLS] of each caption. `tokens`: the residual
    stream of all tokens that have a next token. The multimodal half continues from it."""

    cls: Float[Tensor, "B D"]
    tokens: Float[Tensor, "1 L D"]


class TextDecoder(nn.Module):
    """The unimodal half: causal blocks over `[BOS] caption [EOS] [CLS]`.

    [CLS] is a learned vector, not a word. It comes last, where it attends to the whole caption.
    """

    def __init__(
        self,
        *,
        context_length: int,
        tok_embeddings: nn.Embedding,
        position: nn.Module,
        blocks: nn.ModuleList,
        cls_norm: nn.Module,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.tok_embeddings = tok_embeddings
        self.cls_embedding = nn.Parameter(torch.zeros(tok_embeddings.embedding_dim))
        self.position = position
        self.blocks = blocks
        self.cls_norm = cls_norm

    def pack(
        self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"], layout_of: LayoutOf = pack_lengths
    ) -> PackedText:
        """Pack padded captions for `forward`. `lengths` include [BOS], [EOS] and [CLS]; if they are on the CPU, no
        other device is waited for."""
        longest, device = token_ids.shape[1], token_ids.device
        layout, predicting_layout = layout_of(lengths, longest, device), layout_of(lengths - 2, longest - 2, device)
        return PackedText.of(token_ids, layout, predicting_layout)

    def forward(self, text: PackedText) -> TextDecoderOutput:
        """Run the captions of a batch through all blocks."""
        x = self.tok_embeddings(text.token_ids)  # 1 N D
        x = x.index_copy(1, text.cls, self.cls_embedding.to(x.dtype).expand(1, text.cls.shape[0], -1))
        x = self.position(x, text.layout.positions)
        for block in self.blocks:
            x = block(x, text.layout)
        return TextDecoderOutput(self.cls_norm(x[0].index_select(0, text.cls)), x.index_select(1, text.predicting))


class MultimodalDecoder(nn.Module):
    """The multimodal half: causal blocks with cross-attention to the image, a final norm, and the head.

    `forward` stops before the head. The M × V logits would be the largest tensor of a training step, so the loss
    computes them for some tokens at a time.
    """

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, lm_head: nn.Linear) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = norm
        self.lm_head = lm_head

    def forward(
        self, text_tokens: Float[Tensor, "1 L D"], image_tokens: Float[Tensor, "B Q C"], layout: PackedLayout
    ) -> Float[Tensor, "M D"]:
        """States from which `lm_head` predicts the next tokens, caption after caption."""
        x, context = text_tokens, self.context(image_tokens)
        for block in self.blocks:
            x = block(x, context, layout)
        return self.norm(x[0, : layout.num_tokens])

    def context(self, image_tokens: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q C"]:
        """The image tokens that cross-attention reads. Here they are unchanged; a subclass can normalize them."""
        return image_tokens
