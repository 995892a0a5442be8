"""Search: pictures with their captions and embeddings in an index, in a folder or on a Milvus server."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grr_coca.search.answer import Hit, SearchResult
    from grr_coca.search.index import Index

MODULES = {"SearchResult": "answer", "Hit": "answer", "Index": "index"}

__all__ = ["Hit", "Index", "SearchResult"]


def __getattr__(name: str) -> object:
    """A name of `__all__`, imported when it is first asked for."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
