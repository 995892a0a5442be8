"""The Python face: a checkpoint that captions, embeds, classifies and compares images as people have them."""

from grr_coca.inference.images import ImageInput, ImagesInput
from grr_coca.inference.model import Description, ImageTextModel, LabelProbability, load

__all__ = ["Description", "ImageInput", "ImageTextModel", "ImagesInput", "LabelProbability", "load"]
