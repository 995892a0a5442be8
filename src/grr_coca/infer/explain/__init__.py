"""Heat maps: the parts of an image to which a model attends for each word of a caption, and the patches that support a
text.
"""

from grr_coca.infer.explain.caption import WordMap, caption_maps
from grr_coca.infer.explain.picture import caption_picture, text_picture
from grr_coca.infer.explain.text import TextMap, text_map

__all__ = ["TextMap", "WordMap", "caption_maps", "caption_picture", "text_map", "text_picture"]
