"""Use of trained models: `ImageTextModel`, which `grr_coca.load` returns, and its results."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grr_coca.data.image_forms import ImageInput, ImagesInput
    from grr_coca.infer.image_text_model import Description, ImageTextModel, LabelProbability

__all__ = ["Description", "ImageInput", "ImageTextModel", "ImagesInput", "LabelProbability"]


def __getattr__(name: str) -> object:
    """Import a name of `__all__` only when it is first used, because these names need NumPy and Pillow."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "grr_coca.data.image_forms" if name in ("ImageInput", "ImagesInput") else f"{__name__}.image_text_model"
    return getattr(import_module(module), name)
