"""Captioning: greedy decoding, sampling and beam search, with keys and values cached."""

from grr_coca.generate.captions import (
    Caption,
    Generated,
    caption_encoded,
    caption_images,
    generate,
    warn_if_repeated,
)
from grr_coca.generate.options import GenerationOptions

__all__ = [
    "Caption",
    "Generated",
    "GenerationOptions",
    "caption_encoded",
    "caption_images",
    "generate",
    "warn_if_repeated",
]
