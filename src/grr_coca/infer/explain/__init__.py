"""Heat maps: the parts of an image to which a model attends for each word of a caption."""

from grr_coca.infer.explain.caption import WordMap, caption_maps
from grr_coca.infer.explain.picture import caption_picture

__all__ = ["WordMap", "caption_maps", "caption_picture"]
