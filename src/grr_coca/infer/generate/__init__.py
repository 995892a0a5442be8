"""Captioning by greedy decoding, sampling and beam search, with cached keys and values."""

from importlib import import_module
from typing import TYPE_CHECKING

from grr_coca.infer.generate.options import GREEDY, GenerationOptions

if TYPE_CHECKING:
    from grr_coca.infer.generate.captions import Caption, GeneratedCaptions, generate, stream_captions, warn_if_repeated

__all__ = [
    "GREEDY",
    "Caption",
    "GeneratedCaptions",
    "GenerationOptions",
    "generate",
    "stream_captions",
    "warn_if_repeated",
]


def __getattr__(name: str) -> object:
    """Import a name of `__all__` only when it is first used, because all names except the options need NumPy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.captions"), name)
