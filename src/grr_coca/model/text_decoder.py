"""The unimodal text decoder: a caption by itself, no image in sight.

Shapes: B batch, T text positions, D width, N tokens of all captions without padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.layers.layout import PLAIN, Layout, pack_lengths


class TextDecoderOutput(NamedTuple):
    """`tokens`: the residual stream of all captions, one after another; `cls`: the normalized output at [CLS]."""

    tokens: Float[Tensor, "1 N D"]
    cls: Float[Tensor, "B D"]


class TextDecoder(nn.Module):
    """Causal blocks over `[BOS] caption [EOS] [CLS] padding`.

    [CLS] is a learned vector, not a word, and stands at the end, where it sees the whole caption. Padding comes after
    it and is never computed, so nothing depends on how far a batch is padded.
    """

    def __init__(
        self,
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

    def forward(self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> TextDecoderOutput:
        """Decode padded captions; [CLS] is put at position `lengths - 1` of each row."""
        packing = pack_lengths(lengths, token_ids.shape[1])
        cls_tokens = lengths.cumsum(0) - 1  # where the [CLS] of each caption is among all tokens
        x = self.tok_embeddings(packing.pack(token_ids))  # 1 N D
        x = x.index_copy(1, cls_tokens, self.cls_embedding.to(x.dtype).expand(1, len(lengths), -1))
        tokens = self._run_blocks(x, [Layout.packed(packing)] * len(self.blocks))[:, : packing.num_tokens]
        return TextDecoderOutput(tokens, cls=self.cls_norm(tokens[0, cls_tokens]))

    def prefix(self, token_ids: Int[Tensor, "B T"], layouts: Sequence[Layout] | None = None) -> Float[Tensor, "B T D"]:
        """The tokens of captions that have not ended, so have no [CLS] yet: for generation.

        With layouts that have caches, one for each block, `token_ids` follow what these have seen.
        """
        return self._run_blocks(self.tok_embeddings(token_ids), layouts or [PLAIN] * len(self.blocks))

    def _run_blocks(self, x: Float[Tensor, "B T D"], layouts: Sequence[Layout]) -> Float[Tensor, "B T D"]:
        x = self.position(x, layouts[0].positions)
        for block, layout in zip(self.blocks, layouts, strict=True):
            x = block(x, layout)
        return x
