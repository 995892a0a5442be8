"""One step of decoding: token ids in, logits of the next token out. Keys and values of earlier tokens are cached.

Shapes: B images, R rows of captions (R / B neighbouring rows belong to one image), T new tokens, S slots, Q image
tokens, V vocabulary.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.fast.layers import AbsorbedCrossAttention
from grr_coca.layers.attention import CrossAttention
from grr_coca.layers.layout import Cached
from grr_coca.layers.norm import at_least_fp32
from grr_coca.layers.scaled_attention import KeyValueCache, KeyValues, Mask
from grr_coca.model import CoCa


class Hypothesis(NamedTuple):
    """A caption as token ids, the result of decoding.

    `token_ids`: the new tokens, with the end token if there is one. `log_probs`: the model's own log-probability of
    each. `score`: captions are ranked by it."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float


Context = Float[Tensor, "B Q C"] | KeyValues

MIN_IMAGES_UNPROJECTED = 4
"""With fewer images, image tokens are projected to keys and values once: reading the weights of the projections at each
step takes longer."""


class CachedDecoder:
    """Both halves of the text decoder with their caches. The captions of one image share its keys and values.

    `num_captions`: how many captions of each image will be decoded. `num_reads`: how many tokens they have together. If
    there are few captions or few tokens, `AbsorbedCrossAttention` is cheaper than keys and values.
    """

    def __init__(
        self, model: CoCa, image_tokens: Float[Tensor, "B Q C"], num_slots: int, num_captions: int, num_reads: int
    ) -> None:
        self.model = model
        self.position = 0
        blocks = model.multimodal_decoder.blocks
        image_tokens = model.multimodal_decoder.context(image_tokens)
        self.contexts = [_context(block, image_tokens, num_captions, num_reads) for block in blocks]
        self.text_caches = [KeyValueCache(num_slots) for _ in model.text_decoder.blocks]
        self.multimodal_caches = [KeyValueCache(num_slots) for _ in blocks]

    @property
    def num_images(self) -> int:
        """Number of images that are still being captioned."""
        return len(self.contexts[0][0]) if isinstance(self.contexts[0], KeyValues) else len(self.contexts[0])

    def step(self, token_ids: Int[Tensor, "R T"], mask: Mask = "all") -> Float[Tensor, "R V"]:
        """Run the new tokens through the model, and return the logits of the token that follows them.

        Args:
            token_ids: the prompt at the first step, then one token of each caption at every step.
            mask: which slots of the caches each token attends to, if captions share a line (see `KeyValueCache`).
        """
        num_tokens = token_ids.shape[1]
        if num_tokens > 1:
            assert self.position == 0, "several tokens at once are allowed only at the beginning"
            mask = "causal"
        positions = slice(self.position, self.position + num_tokens)
        self.position += num_tokens
        text, multimodal = self.model.text_decoder, self.model.multimodal_decoder
        x = text.position(text.tok_embeddings(token_ids), positions)  # R T D
        for block, cache in zip(text.blocks, self.text_caches, strict=True):
            x = block(x, Cached(cache, positions, mask))
        for block, context, cache in zip(multimodal.blocks, self.contexts, self.multimodal_caches, strict=True):
            x = block(x, context, Cached(cache, positions, mask))
        return at_least_fp32(multimodal.lm_head(multimodal.norm(x[:, -1])))

    def repeat(self, count: int) -> None:
        """Copy each line of the caches `count` times, so that several captions continue one prompt."""
        lines = torch.arange(self.num_images, device=self.model.device).repeat_interleave(count)
        self._select_lines(lines)

    def keep(self, images: Int[Tensor, " B"], lines: Int[Tensor, " L"]) -> None:
        """Keep only these images, and only these lines of the caches (see `KeyValueCache`)."""
        self.contexts = [
            KeyValues(*(kept[images] for kept in context)) if isinstance(context, KeyValues) else context[images]
            for context in self.contexts
        ]
        self._select_lines(lines)

    def _select_lines(self, lines: Int[Tensor, " L"]) -> None:
        for cache in (*self.text_caches, *self.multimodal_caches):
            cache.select(lines)


def _context(block: nn.Module, image_tokens: Float[Tensor, "B Q C"], num_captions: int, num_reads: int) -> Context:
    """The context of a block's cross-attention: the image tokens, or their keys and values, contiguous for each
    head."""
    attn = cast(CrossAttention | AbsorbedCrossAttention, block.cross_attn)
    enough = len(image_tokens) >= MIN_IMAGES_UNPROJECTED
    # With one query at a time, reading memory takes the time. All blocks read the same image tokens, which are half
    # as large as the keys and values of one block.
    if (
        enough
        and isinstance(attn, AbsorbedCrossAttention)
        and (num_captions == 1 or attn.pays(num_reads, image_tokens.shape[1]))
    ):
        return image_tokens
    return KeyValues(*(kept.transpose(1, 2).contiguous().transpose(1, 2) for kept in attn.project(image_tokens)))
