"""The multimodal text decoder: goes on from the unimodal half, now looking at the image.

Shapes: B batch, T text positions, D width, Q image tokens of width C, V vocabulary.
"""

from collections.abc import Sequence
from itertools import repeat

from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.layers.attention import Cache, KeyValues


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
        return self.lm_head(self.states(text_tokens, [image_tokens] * len(self.blocks)))

    def project(self, image_tokens: Float[Tensor, "B Q C"]) -> list[KeyValues]:
        """Each block's keys and values of the images, for `states`: once per image, however long its captions."""
        return [block.cross_attn.project(image_tokens) for block in self.blocks]  # type: ignore[union-attr, operator]

    def states(
        self,
        text_tokens: Float[Tensor, "R T D"],
        contexts: Sequence[Float[Tensor, "B Q C"] | KeyValues],
        positions: Int[Tensor, " T"] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "R T D"]:
        """What the head reads, normalized; R / B captions in a row belong to one image. Caches as in `prefix`."""
        x = text_tokens
        for block, context, cache in zip(self.blocks, contexts, caches or repeat(None)):  # noqa: B905
            x = block(x, context, positions, cache)
        return self.norm(x)
