"""Heat maps: where a model looks for each word of a caption, and which patches support a text."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grr_coca.explain.caption import WordMap, caption_maps
    from grr_coca.explain.picture import caption_picture, text_picture
    from grr_coca.explain.text import TextMap, text_map

__all__ = ["TextMap", "WordMap", "caption_maps", "caption_picture", "text_map", "text_picture"]

_FILES = {
    "WordMap": "caption",
    "caption_maps": "caption",
    "caption_picture": "picture",
    "text_picture": "picture",
    "TextMap": "text",
    "text_map": "text",
}


def __getattr__(name: str) -> object:
    """Import a name of `__all__` when it is first used: the maps need no matplotlib, which draws their pictures."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
