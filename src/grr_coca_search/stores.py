"""Opens, makes and removes the store of an index, by its location: a folder, or a server."""

from importlib import import_module

from grr_coca_search.embedded.embedded_store import EmbeddedStore
from grr_coca_search.entry import Header
from grr_coca_search.store import Store

_SERVERS = dict.fromkeys(("http://", "https://", "tcp://", "milvus:"), "milvus.milvus_store:MilvusStore")
"""The stores on servers, by how their locations begin. Every other location is a folder."""


def _kind_of(location: str) -> type[Store]:
    for scheme, name in _SERVERS.items():
        if location.startswith(scheme):
            module, _, kind = name.partition(":")
            store: type[Store] = getattr(import_module(f"grr_coca_search.{module}"), kind)  # late: it needs an extra
            return store
    return EmbeddedStore


def is_index(location: str) -> bool:
    """True if this is the location of an index, and of no icon set or folder of pictures."""
    return _kind_of(location).is_there(location)


def open_store(location: str) -> Store:
    """Open the store of an index: a folder, `http://HOST:PORT/COLLECTION`, or `milvus:FILE`.

    Raises:
        UserError: there is no index, or it cannot be reached.
    """
    store = _kind_of(location).open(location)
    assert store is not None
    return store


def find_store(location: str) -> Store | None:
    """Open the store of an index; None if there is none yet, and one can be made there.

    Raises:
        UserError: something else is there, or it cannot be reached.
    """
    return _kind_of(location).open(location, is_optional=True)


def make_store(location: str, header: Header) -> Store:
    """Create a store without images.

    Raises:
        UserError: it cannot be created there.
    """
    return _kind_of(location).create(location, header)


def remove_store(location: str) -> None:
    """Remove an index, finished or not. No other process may use it.

    Raises:
        UserError: it cannot be removed, or the server cannot be reached.
    """
    _kind_of(location).remove(location)
