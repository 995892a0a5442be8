"""An index: pictures by what they show. `grr_coca.Index.open` opens one, in a folder or on a Milvus server.

Opens the store that a location means: a folder, or a collection of a Milvus server.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from grr_coca.errors import UserError
from grr_coca.inference.on_ray import Machines
from grr_coca.registry import DEFAULT
from grr_coca.search.answer import Query, SearchOptions, SearchResult, search_store
from grr_coca.search.duplicates import Group, duplicate_groups
from grr_coca.search.embedded.database import FILE, create_database, holds_nothing_else, remove_database
from grr_coca.search.embedded.store import EmbeddedStore
from grr_coca.search.entry import Header, pieces
from grr_coca.search.filters import parse_filter
from grr_coca.search.model import IndexModel
from grr_coca.search.store import Changes, Store
from grr_coca.search.update import Describer, OnProgress, Update, absolute_arguments, forget_arguments, update_store

if TYPE_CHECKING:
    from PIL import Image

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


MOST_HITS = 10_000


class Index:
    """Pictures with their captions and embeddings, to be searched by words and pictures.

    Any number of processes read it; the first change takes the lock of the one that writes, and keeps it until the
    index is closed. Use it as a context, or call `close`.
    """

    def __init__(self, store: Store, model: IndexModel) -> None:
        self.store = store
        self.model = model

    @classmethod
    def open(
        cls, location: str | Path, model: str | Path | None = None, *, create: bool = False, batch_size: int = 32
    ) -> Self:
        """Open an index.

        Args:
            location: its folder, `http://HOST:PORT/NAME` of a Milvus server, or `milvus:FILE`.
            model: checkpoint folder, name of a shipped model or `OWNER/NAME` on the hub; None: the one that the index
                was made with, or for a new one the one that ships.
            create: make it if it is not there.
            batch_size: pictures described at once.

        Raises:
            UserError: there is no index, it is one of another model, or a newer version wrote it. Or `batch_size` is
                below 1.
        """
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: give 1 or more")
        store, chosen = open_store(str(location), is_optional=create), None
        if store is None:
            chosen = IndexModel(str(DEFAULT if model is None else model), batch_size)
            store = make_store(str(location), chosen.header)
        try:
            if chosen is None:
                chosen = _model_of(store, batch_size) if model is None else IndexModel(str(model), batch_size)
            chosen.require(store.header, store.location)  # of a new index too: another process may have made it first
        except BaseException:
            store.close()
            raise
        return cls(store, chosen)

    def close(self) -> None:
        """Let go of files, connections and the writer's lock."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.store)

    def add(
        self,
        images: str | Path | Iterable[str | Path],
        on_progress: OnProgress = lambda *_: None,
        on: Machines = "this",
    ) -> Update:
        """Add pictures, or bring those that are there up to date.

        What is there already is not read again, as long as its size and time are the same. Of a folder, shard, table or
        pattern that was added before, pictures that are gone are removed.

        Args:
            images: files, folders, patterns, tar shards, tables of pairs; see `grr-coca index`.
            on_progress: called with the number of pictures done, of all, and of those that failed.
            on: describe pictures on this machine, or on those of a Ray cluster.

        Raises:
            UserError: one is not there or holds no picture, another process writes, or the disk is full.
        """
        named = [str(image) for image in ([images] if isinstance(images, str | Path) else images)]
        return update_store(self.store, named, partial(self._describer, on), self.model.batch_size, on_progress)

    def _describer(self, on: Machines) -> Describer:
        if on == "this":
            return self.model
        from grr_coca.search.model import RayDescriber  # late: it is an extra

        return RayDescriber(self.model.folder)

    def refresh(self, on_progress: OnProgress = lambda *_: None, on: Machines = "this") -> Update:
        """`add` everything that was added before once more."""
        return self.add(self.store.roots(), on_progress, on)

    def delete(self, names: str | Path | Iterable[str | Path] = (), *, where: str | None = None) -> int:
        """Remove pictures; the files stay. Returns how many were there.

        Args:
            names: paths, or names as hits have them.
            where: remove all that a filter picks.

        Raises:
            UserError: the filter is none, or another process writes.
        """
        given = [names] if isinstance(names, str | Path) else list(names)
        wanted = {*map(str, given), *absolute_arguments(list(map(str, given)))}
        if where is not None:
            tree = parse_filter(where, self.store.columns())
            wanted |= {entry.name for entry in self.store.matching(tree)}
        before = len(self)
        for piece in pieces(sorted(wanted), 1000):
            self.store.commit(Changes(removed=piece))
        return before - len(self)

    def forget(self, arguments: str | Path | Iterable[str | Path]) -> int:
        """Remove all that was found by some arguments of `add`, or lies below them; returns how many pictures.

        They need not be there any more. What is there comes back when something above it is added again.

        Args:
            arguments: folders, files, shards, tables or patterns.

        Raises:
            UserError: the index holds nothing of one of them, or another process writes.
        """
        given = [arguments] if isinstance(arguments, str | Path) else arguments
        return forget_arguments(self.store, list(map(str, given)))

    def search(
        self,
        texts: str | Sequence[str] = (),
        n: int = 20,
        *,
        image: "str | Path | Image.Image | Sequence[str | Path | Image.Image]" = (),
        without: str | Sequence[str] = (),
        weights: Sequence[float] = (),
        where: str | None = None,
        hybrid: bool = True,
        fold: bool = True,
    ) -> SearchResult:
        """Find pictures.

        Args:
            texts: what they show, in words; several are all looked for.
            n: the most hits.
            image: a picture, or several, that they are like.
            without: texts of what they must not show.
            weights: how much each text counts.
            where: a filter such as `folder = 'logos' and width > 64`; see `grr_coca.search.filters`.
            hybrid: if the query is words alone, fuse the nearest embeddings with the best of the full-text index of
                captions and file names; an index on Milvus has none.
            fold: make one hit of pictures that look the same.

        Raises:
            UserError: nothing is asked for, the filter is none, or a picture cannot be read.
        """
        if not 1 <= n <= MOST_HITS:
            raise UserError(f"{n} hits: give a number from 1 to {MOST_HITS:,}")
        query = Query(texts=_many(texts), images=_many(image), without=_many(without), weights=tuple(weights))
        options = SearchOptions(n=n, where=where, hybrid=hybrid, fold=fold)
        return search_store(query, self.store, self.model, options)

    def duplicates(self) -> list[Group]:
        """Groups of pictures that look the same, the largest first."""
        return duplicate_groups(self.store)


def _model_of(store: Store, batch_size: int) -> IndexModel:
    try:
        return IndexModel(store.header.model, batch_size)
    except UserError as error:
        raise UserError(
            f"{store.location}: made with the model '{store.header.model}', which is not there any more; if it lies "
            f"elsewhere now, name it by -c ({error})"
        ) from error


def _many(one_or_many: object) -> tuple:
    if isinstance(one_or_many, list | tuple):
        return tuple(one_or_many)
    return (one_or_many,)
