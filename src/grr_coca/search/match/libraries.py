"""Opens one side of a match by what people type: icon sets, files and folders, or an index."""

from collections.abc import Sequence
from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.search.embedded.database import FILE
from grr_coca.search.index import open_store
from grr_coca.search.match.matcher import Matcher
from grr_coca.search.match.picture_set import OnProgress, OpenPictureSet


def is_index(argument: str) -> bool:
    """True if an argument is the location of an index, and no icon set or folder of pictures."""
    return argument.startswith(("http://", "https://", "milvus:", "tcp://")) or (Path(argument) / FILE).is_file()


def open_library(
    matcher: Matcher,
    arguments: Sequence[str],
    *,
    exclude: Sequence[str] = (),
    on_progress: OnProgress = lambda *_: None,
) -> OpenPictureSet:
    """Open icon sets, files and folders, or one index.

    Raises:
        UserError: an argument does not exist or has no picture, an index is given together with something else, or it
            was made by another model.
    """
    indexes = [argument for argument in arguments if is_index(argument)]
    if not indexes:
        return matcher.open(arguments, exclude=exclude, on_progress=on_progress)
    if len(arguments) > 1:
        raise UserError(f"{indexes[0]}: an index is matched alone; give one index, or sources")
    store = open_store(indexes[0])
    assert store is not None
    try:
        return matcher.open_store(store)
    finally:
        store.close()
