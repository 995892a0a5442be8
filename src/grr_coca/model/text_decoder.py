"""The unimodal half of the text decoder: it reads captions and does not see the image.

Shapes: B captions, D width, M tokens (of all captions, rounded up) that have a next token.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.model.packed_text import PackedText, PackText


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
