"""Index of images, in a folder or on a Milvus server, for searches by words, images and metadata fields."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grr_coca_search.index import Index
    from grr_coca_search.query import Hit, SearchResult

_MODULES = {"SearchResult": "query", "Hit": "query", "Index": "index"}

__all__ = ["Hit", "Index", "SearchResult"]


def __getattr__(name: str) -> object:
    """Import a name that `__all__` lists when the name is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
