"""Opens the store that a location means: a folder, or a collection of a Milvus server."""

from pathlib import Path

from grr_coca.errors import UserError
from grr_coca.search.embedded.database import FILE, create_database, holds_nothing_else, remove_database
from grr_coca.search.embedded.store import EmbeddedStore
from grr_coca.search.entry import Header
from grr_coca.search.store import Store

MILVUS = ("http://", "https://", "milvus:", "tcp://")


def open_store(location: str, is_optional: bool = False) -> Store | None:
    """The store of an index.

    Args:
        location: a folder, `http://HOST:PORT/COLLECTION`, or `milvus:FILE`.
        is_optional: if nothing is there yet, return None instead of raising an error.

    Raises:
        UserError: nothing is there, it is no index, or it cannot be reached.
    """
    if location.startswith(MILVUS):
        from grr_coca.search.milvus.connect import open_collection  # late: it is an extra

        return open_collection(location, is_optional)
    folder = Path(location)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, and an index is a folder; give another name")
    if is_optional and not (folder / FILE).exists():
        if folder.exists() and not holds_nothing_else(folder):
            raise UserError(f"{folder}: holds other files, and is not an index; give a folder that is empty or new")
        return None
    return EmbeddedStore(folder)


def make_store(location: str, header: Header) -> Store:
    """A new store without pictures.

    Raises:
        UserError: it cannot be made there.
    """
    if location.startswith(MILVUS):
        from grr_coca.search.milvus.connect import create_collection

        return create_collection(location, header)
    create_database(Path(location), header)
    return EmbeddedStore(Path(location))


def remove_store(location: str) -> None:
    """Remove an index that no other process uses, finished or not.

    Raises:
        UserError: it cannot be removed, or the server cannot be reached.
    """
    if location.startswith(MILVUS):
        from grr_coca.search.milvus.connect import drop_collections

        drop_collections(location)
    else:
        remove_database(Path(location))
