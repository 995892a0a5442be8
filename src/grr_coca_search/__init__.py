"""Index of images, in a folder or on a Milvus server, for searches by words, images and metadata fields."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grr_coca_search.index import Index
    from grr_coca_search.query import Hit, SearchResult

_MODULES = {"SearchResult": "query", "Hit": "query", "Index": "index"}

__all__ = ["Hit", "Index", "SearchResult"]


def __getattr__(name: str) -> object:
    """Return an object that `__all__` lists. Its module is imported at the first use.

    Raises:
        AttributeError: If `__all__` does not list the name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
