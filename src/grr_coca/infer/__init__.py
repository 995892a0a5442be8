"""What `grr_coca.load` returns: a model that captions, embeds, classifies and compares images."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grr_coca.infer.image_forms import ImageInput, ImagesInput
    from grr_coca.infer.image_text_model import Description, ImageTextModel, LabelProbability, load

__all__ = ["Description", "ImageInput", "ImageTextModel", "ImagesInput", "LabelProbability", "load"]


def __getattr__(name: str) -> object:
    """A name of `__all__`, imported when it is first used: all of them need NumPy and Pillow."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.image_text_model"), name)
