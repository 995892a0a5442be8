"""The multimodal text decoder: goes on from the unimodal half, now looking at the image.

Shapes: B batch, T text positions, N of a packed row, M of them real, D width, Q image tokens of width C, V vocabulary.
"""

from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.layout import PLAIN, Layout, Packing


class MultimodalDecoder(nn.Module):
    """Causal blocks with cross-attention to the image, final norm, and the head that predicts the next token."""

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, lm_head: nn.Linear) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = norm
        self.lm_head = lm_head

    def forward(
        self, text_tokens: Float[Tensor, "B T D"], image_tokens: Float[Tensor, "B Q C"]
    ) -> Float[Tensor, "B T V"]:
        """Logits of the next token at each position."""
        return self.lm_head(self.norm(self._run_blocks(text_tokens, image_tokens)))

    def states(
        self, text_tokens: Float[Tensor, "1 N D"], image_tokens: Float[Tensor, "B Q C"], packing: Packing
    ) -> Float[Tensor, "M D"]:
        """What the head makes logits of, for packed captions."""
        return self.norm(self._run_blocks(text_tokens, image_tokens, Layout.packed(packing))[0, : packing.num_tokens])

    def _run_blocks(self, x: Tensor, image_tokens: Tensor, layout: Layout = PLAIN) -> Float[Tensor, "R T D"]:
        for block in self.blocks:
            x = block(x, image_tokens, layout)
        return x
