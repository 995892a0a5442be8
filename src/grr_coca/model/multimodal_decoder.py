"""The multimodal half of the text decoder: it continues from the unimodal half, and attends to the image.

Shapes: B captions, M tokens (of all captions) that have a next token, L = M rounded up, D width, Q image tokens of
width C, V vocabulary.
"""

from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.layout import Packed


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
