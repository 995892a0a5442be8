"""The model as a caption decoder sees it: token ids in, logits of the next token out, the past kept in caches.

Shapes: B images, R rows of captions (R / B in a row belong to one image), T new tokens, S slots, Q image tokens,
V vocabulary.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grr_coca.generate.cache import KeyValueCache
from grr_coca.layers.attention import KeyValues
from grr_coca.layers.precision import at_least_fp32
from grr_coca.model import CoCa


class CachedDecoder:
    """Both text halves with their caches. The image's keys and values are projected once and never copied per row."""

    def __init__(self, model: CoCa, image_tokens: Float[Tensor, "B Q C"], num_slots: int) -> None:
        self.model = model
        self.position = 0
        self.contexts = model.multimodal_decoder.project(image_tokens)
        self.text_caches = [KeyValueCache(num_slots) for _ in model.text_decoder.blocks]
        self.multimodal_caches = [KeyValueCache(num_slots) for _ in model.multimodal_decoder.blocks]

    @property
    def num_images(self) -> int:
        """Images that are still being captioned."""
        return len(self.contexts[0].keys)

    def step(
        self, token_ids: Int[Tensor, "R T"], mask: Bool[Tensor, "#B 1 #T S"] | None = None
    ) -> Float[Tensor, "R V"]:
        """Logits of what follows the last of the new tokens; `mask` as in `KeyValueCache`."""
        num_tokens = token_ids.shape[1]
        if num_tokens > 1:
            assert self.position == 0, "several tokens at once only at the beginning"
            mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=token_ids.device).tril()[None, None]
        for cache in (*self.text_caches, *self.multimodal_caches):
            cache.mask = mask
        positions = torch.arange(self.position, self.position + num_tokens, device=token_ids.device)
        tokens = self.model.text_decoder.prefix(token_ids, positions, self.text_caches)
        decoder = self.model.multimodal_decoder
        states = decoder.states(tokens, self.contexts, positions, self.multimodal_caches)
        self.position += num_tokens
        return at_least_fp32(decoder.lm_head(states[:, -1]))

    def repeat(self, count: int) -> None:
        """Give each line of slots `count` copies in a row: several captions go on from one prompt."""
        lines = torch.arange(self.num_images, device=self.contexts[0].keys.device).repeat_interleave(count)
        self._select_lines(lines)

    def keep(self, images: Int[Tensor, " B"], lines: Int[Tensor, " L"]) -> None:
        """Go on with some images and their lines of slots alone."""
        self.contexts = [KeyValues(keys[images], values[images]) for keys, values in self.contexts]
        self._select_lines(lines)

    def _select_lines(self, lines: Int[Tensor, " L"]) -> None:
        for cache in (*self.text_caches, *self.multimodal_caches):
            cache.select(lines)
