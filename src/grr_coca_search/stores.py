"""Opens, makes and removes the store of an index, by its location: a folder, or a server."""

from grr_coca.common import plugins
from grr_coca_search.embedded.embedded_store import EmbeddedStore
from grr_coca_search.entry import Header
from grr_coca_search.store import Store


def _kind_of(location: str) -> type[Store]:
    """Return the kind of a store, by the scheme of its location: a class that an entry point of `grr_coca.stores`
    names.

    A location without one is a folder.
    """
    scheme, colon, _ = location.partition(":")
    kind: type[Store] | None = plugins.named("grr_coca.stores", scheme) if colon else None
    return EmbeddedStore if kind is None else kind


def is_index(location: str) -> bool:
    """Return whether this is the location of an index, and of no icon set or folder of pictures."""
    return _kind_of(location).is_there(location)


def open_store(location: str) -> Store:
    """Open the store of an index: a folder, `http://HOST:PORT/COLLECTION`, or `milvus:FILE`.

    Raises:
        UserError: If the index is not found, or cannot be reached.
    """
    store = _kind_of(location).open(location)
    assert store is not None
    return store


def find_store(location: str) -> Store | None:
    """Open the store of an index; None if there is none yet, and one can be made there.

    Raises:
        UserError: Something else is there, or it cannot be reached.
    """
    return _kind_of(location).open(location, is_optional=True)


def make_store(location: str, header: Header) -> Store:
    """Create a store without images.

    Raises:
        UserError: If it cannot be created there.
    """
    return _kind_of(location).create(location, header)


def remove_store(location: str) -> None:
    """Remove an index, finished or not. No other process may use it.

    Raises:
        UserError: If it cannot be removed, or the server cannot be reached.
    """
    _kind_of(location).remove(location)
