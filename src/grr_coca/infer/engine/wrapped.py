"""Engine that delegates to another engine, as a base class for engines that change only some of its methods."""

from contextlib import AbstractContextManager

import numpy as np

from grr_coca.common.shapes import Float, Int, UInt8
from grr_coca.infer.engine.base import Decoder, EncodedImages, Engine, EngineName


class WrappedEngine:
    """Engine that delegates to a base engine.

    Args:
        base: The base engine.
    """

    def __init__(self, base: Engine) -> None:
        self.base = base
        self.name: EngineName = base.name
        self.embed_dim, self.context_length, self.vocab_size = base.embed_dim, base.context_length, base.vocab_size
        self.logit_scale, self.logit_bias = base.logit_scale, base.logit_bias

    @property
    def device(self) -> str:
        """Device of the base engine."""
        return str(getattr(self.base, "device", "cpu"))

    @property
    def workers(self) -> int:
        """Number of workers; see `Engine`."""
        return self.base.workers

    def single_threaded(self) -> AbstractContextManager:
        """Return the context manager; see `Engine`."""
        return self.base.single_threaded()

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode images; see `Engine`."""
        return self.base.encode_images(pixels)

    def encode_texts(
        self, token_ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B E"]:
        """Encode texts; see `Engine`."""
        return self.base.encode_texts(token_ids, lengths)

    def decoder(
        self, images: EncodedImages, *, num_prompt: int, max_tokens: int, num_captions: int = 1, beams: bool = False
    ) -> Decoder:
        """Create a decoder; see `Engine`."""
        return self.base.decoder(
            images, num_prompt=num_prompt, max_tokens=max_tokens, num_captions=num_captions, beams=beams
        )
