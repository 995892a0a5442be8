"""Index of the server. It is searched page by page, browsed, and reopened if another index has replaced it.

Call the methods from threads other than that of the event loop, because they read files. New images of a growing index
are found immediately, because every read sees the newest state.
"""

import math
import re
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from grr_coca.common.errors import CorruptDataError, UserError, suggest_name
from grr_coca.data.tokenizer import clean_query
from grr_coca_search.duplicates import duplicate_groups
from grr_coca_search.entry import Entry, name_id
from grr_coca_search.filters import parse_filter
from grr_coca_search.index import Index, IndexModel
from grr_coca_search.query import Hit, Query, Ranking, SearchOptions, Thesaurus, hits_of, rank_images
from grr_coca_search.relevance import RelevanceCurve
from grr_coca_search.store import Facet, Store, facet_fields, facets, open_store, value_counts, value_counts_of
from grr_coca_serve.files import PictureFiles
from grr_coca_serve.lru_cache import LruCache
from grr_coca_serve.queue import ModelQueue, QueuedModel, deadline_error
from grr_coca_serve.request_error import RequestError

if TYPE_CHECKING:
    from grr_coca.infer import ImageTextModel

MAX_RANKED = 1000
"""Maximum number of hits of a query, which the page requests in parts."""
_FIRST_RANKED = 100
"""Number of hits that are ranked for the first page of hits. While users are typing, they do not request more hits."""
_MAX_ORDER_BYTES = 2**27
"""Maximum total size, in bytes, of the cached lists of the ids of filtered images. At 8 bytes per id, these lists can
contain 16 million ids.
"""
_MAX_OF_GROUP = 60
"""Maximum number of images that are listed for a group of duplicates. For example, an index may have a million blank
images, which form one group."""
_SECONDS_OF_FACETS = 10.0
"""Minimum number of seconds between two counts of facets while an index grows."""


NO_DRAWINGS: Mapping[str, str] = {}


def picture_id(name: str) -> str:
    """Return the id of an image, which is valid as long as the index has the image."""
    return f"{name_id(name):016x}"


def parse_image_id(identity: str) -> int:
    """Convert an id to an `Entry.name_hash`.

    Raises:
        RequestError: If the text is not an id.
    """
    if not re.fullmatch("[0-7][0-9a-f]{15}", identity):  # 63 bits, see `name_id`
        raise _unknown_image_error()
    return int(identity, 16)


def _unknown_image_error() -> RequestError:
    return RequestError(404, "the index has no image with this id; list its images with /pictures")


def picture(entry: Entry, there: Mapping[str, bool], drawings: Mapping[str, str] = NO_DRAWINGS) -> dict[str, Any]:
    """Convert an image of the index to a dictionary for JSON.

    `there` and `drawings` are the results of `PictureFiles.files_exist` and `PictureFiles.drawings`.
    """
    svg = drawings.get(entry.name)
    return {
        "id": picture_id(entry.name),
        "name": entry.name,
        "caption": entry.caption,
        "folder": entry.folder,
        "date": entry.date,
        "size": entry.stamp.size,
        "width": entry.width,
        "height": entry.height,
        "fields": entry.shown_fields,
        "is_there": there[entry.file],
        "is_vector": entry.is_vector,
        **({} if svg is None else {"svg": svg}),
    }


class ServedIndex:
    """Index that a server serves.

    Args:
        location: Index folder, or `http://HOST:PORT/NAME` of a Milvus server.
        model: Model of the server. An index of another model is rejected.
        queue: Queue of the model.
        files: Image files of the index.
        curve: Relevance curve of the model. None if the model does not have a curve.
    """

    def __init__(
        self,
        location: str,
        model: IndexModel,
        queue: ModelQueue,
        files: PictureFiles,
        *,
        curve: RelevanceCurve | None,
    ) -> None:
        self.location = location
        self.files = files
        self._model = model
        self._queue = queue
        self._curve = curve
        self._captions = LruCache[str, np.ndarray](50_000)
        self._rankings = LruCache[Hashable, Ranking](32)
        self._orders = LruCache[Hashable, np.ndarray](_MAX_ORDER_BYTES)
        self._open = _OpenStore(location, model.fingerprint)
        self._facets: tuple[str, float, list[Facet]] = ("", -math.inf, [])
        self._counted = LruCache[Hashable, list[Facet]](100)
        self._groups = LruCache[str, list[list[int]]](1)

    def close(self) -> None:
        """Close the store. A later use opens it again."""
        self._open.close()

    @property
    def model_folder(self) -> Path:
        """Folder of the model."""
        return self._model.folder

    @contextmanager
    def use(self) -> Iterator[Store]:
        """Yield the store within a snapshot, so that all reads see the same state.

        Raises:
            RequestError: If the index was deleted, cannot be read, or changed during the request.
        """
        with self._open.use() as store, store.snapshot():
            yield store

    def revision(self, store: Store) -> str:
        """Return a text that changes with the index. `store` is the store that `use` yielded."""
        return self._open.revision(store)

    def open_for_tools(self) -> Index:
        """Open the index again, for agent tools. Its model is the server's model, used through the queue.

        The caller must close the returned index.

        Raises:
            UserError: If the index does not exist, or belongs to another model.
            RequestError: If the model is still being loaded.
        """
        self._queue.ready()
        self._model.loaded = cast("ImageTextModel", QueuedModel(self._queue, self._queue.seconds))
        store = open_store(self.location)
        try:
            self._model.require(store.header, self.location)
        except UserError:
            store.close()
            raise
        return Index(store, self._model)

    def state(self) -> tuple[int, str]:
        """Return the number of images, and a text that changes with the index.

        Raises:
            RequestError: If the index was deleted or cannot be read. This also applies to all methods below.
        """
        with self._open.use() as store, store.snapshot():
            return len(store), self._open.revision(store)

    # --- Search

    def search(
        self, query: Query, *, where: str | None, offset: int, limit: int, expires: float, svg: bool = False
    ) -> dict[str, Any]:
        """Return the content of a `SearchAnswer` with up to `limit` hits from position `offset` on, best first.

        Args:
            query: The query.
            where: Filter that hits must match, or None.
            offset: Number of hits to skip.
            limit: Maximum number of hits.
            expires: Time, by the monotonic clock, by which the model must have answered.
            svg: Whether the hits include the sources of small SVG files.

        Raises:
            UserError: If the filter or the query is invalid.
            RequestError: If the time has run out, or the model is still being loaded.
        """
        model = _QueryModel(self._queue, self._curve, self._model.thesaurus, self._captions, expires)
        with self._open.use() as store:
            revision = self._open.revision(store)
            # A query with images is not cached, because its images are arrays, and its hits are requested only once.
            count = _FIRST_RANKED if offset + limit < _FIRST_RANKED else MAX_RANKED
            key = None if query.images else (revision, query, where, count)
            ranking = self._rankings.get(key)
        if ranking is None:
            options = SearchOptions(n=count, where=where, hybrid=True, fold=True, files_exist=self.files.files_exist)
            with self._open.use() as store:
                ranking = rank_images(query, store, model, options)
            if key is not None:
                self._rankings.put(key, ranking)
        groups = ranking.groups[offset : offset + limit]
        there = self.files.files_exist([entry for group in groups for entry in group])
        drawings = self.files.drawings([best for best, *_ in groups]) if svg else NO_DRAWINGS
        found = hits_of(ranking, model, offset, offset + limit, lambda _: there)
        first = found if offset == 0 else hits_of(ranking, model, 0, min(offset, 10), self.files.files_exist)
        return {
            "hits": [
                _hit(hit, copies, found.can_tell, there, drawings)
                for hit, (_, *copies) in zip(found, groups, strict=True)
            ],
            "more": len(ranking.groups) > offset + limit,
            "searched": ranking.searched,
            "verdict": first.verdict,
            "num_likely": found.num_likely,
            "facets": [] if offset else self._counts(ranking.groups),
            "counted": 0 if offset else len(ranking.groups),
            "can_tell": first.can_tell,  # also for a page after the last hit
            "unknown": list(ranking.unknown),
        }

    def _counts(self, groups: Sequence[Sequence[Entry]]) -> list[Facet]:
        with self._open.use() as store:
            return value_counts_of(groups, facet_fields(store.columns()))

    # --- Browsing

    def pictures(self, where: str | None, offset: int, limit: int, svg: bool = False) -> dict[str, Any]:
        """Return the content of a `PicturesAnswer`: up to `limit` images from position `offset` on, newest first.

        If `svg` is true, they include the sources of small SVG files. Only one thread may call this method.

        Raises:
            UserError: If the filter is invalid.
        """
        with self._open.use() as store, store.snapshot():
            order = self._orders.get_or_make(
                (self._open.revision(store), where),
                lambda: store.newest_first(None if where is None else parse_filter(where, store.columns())),
                lambda order: order.nbytes,
            )
            entries = store.entries(order[offset : offset + limit].tolist())
        there = self.files.files_exist(entries)
        drawings = self.files.drawings(entries) if svg else NO_DRAWINGS
        return {"total": len(order), "pictures": [picture(entry, there, drawings) for entry in entries]}

    def entry(self, identity: str) -> Entry:
        """Return an image by its id.

        Raises:
            RequestError: If the index does not have the image.
        """
        draw = parse_image_id(identity)
        with self._open.use() as store, store.snapshot():
            ids = store.ids_of([draw])
            if not ids:
                raise _unknown_image_error()
            return store.entries([ids[draw]])[0]

    def picture(self, identity: str) -> dict[str, Any]:
        """Return an image by its id, as a dictionary for JSON.

        Raises:
            RequestError: If the index does not have the image.
        """
        entry = self.entry(identity)
        return picture(entry, self.files.files_exist([entry]))

    def facets(self) -> list[Facet]:
        """Return the fields by which images can be filtered, with their values.

        Only one thread may call this method. While an index grows, its values are counted again at most every
        `_SECONDS_OF_FACETS` seconds.
        """
        with self._open.use() as current:
            revision = self._open.revision(current)
            known, counted, found = self._facets
            if known != revision and time.monotonic() - counted > _SECONDS_OF_FACETS:
                with current.snapshot():
                    found = facets(current)
                self._facets = (revision, time.monotonic(), found)
            return found

    def counts(self, where: str, fields: Sequence[str]) -> list[Facet]:
        """Return the values of text fields, each with the number of images that match a filter.

        Only one thread may call this method.

        Args:
            where: The filter.
            fields: Fields whose values are counted. If this is empty, all fields by which images can be filtered.

        Raises:
            UserError: If the filter is invalid, or images cannot be filtered by a field.
        """
        with self._open.use() as store, store.snapshot():
            columns = store.columns()
            tree, known = parse_filter(where, columns), facet_fields(columns)
            for field in fields:
                if field not in known:
                    raise UserError(f"unknown field '{field}'; {suggest_name(field, known)}")
            key = (self._open.revision(store), where, tuple(fields))
            return self._counted.get_or_make(key, lambda: value_counts(store, fields or known, tree))

    def duplicates(self, offset: int, limit: int) -> dict[str, Any]:
        """Return the content of a `GroupsAnswer`: up to `limit` groups of duplicates from position `offset` on.

        The largest group comes first. Only the first images of each group are included. Only one thread may call this
        method.
        """
        with self._open.use() as store:
            every = self._groups.get_or_make(
                self._open.revision(store),
                lambda: [[entry.name_hash for entry in group.entries] for group in duplicate_groups(store)],
            )
        groups = every[offset : offset + limit]
        shown = [group[:_MAX_OF_GROUP] for group in groups]
        with self._open.use() as store, store.snapshot():
            ids = store.ids_of([draw for group in shown for draw in group])
            found = [store.entries([ids[draw] for draw in group if draw in ids]) for group in shown]
        there = self.files.files_exist([entry for group in found for entry in group])
        return {
            "total": len(every),
            "sizes": [len(group) for group in groups],
            "groups": [[picture(entry, there) for entry in group] for group in found],
        }


def _hit(
    hit: Hit, copies: Sequence[Entry], can_tell: bool, there: Mapping[str, bool], drawings: Mapping[str, str]
) -> dict[str, Any]:
    """Convert a hit and its near-duplicates to a dictionary for JSON. The relevance is None if it is not valid."""
    relevance = hit.relevance if can_tell else None
    shown = [picture(copy, there) for copy in copies]
    return {**picture(hit.entry, there, drawings), "score": hit.score, "relevance": relevance, "copies": shown}


class _OpenStore:
    """Store that is opened when it is first used, and reopened when its index has been replaced."""

    def __init__(self, location: str, fingerprint: str) -> None:
        self._location = location
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._num_opened = 0

    def revision(self, store: Store) -> str:
        """Return a text that changes with the index, and when the index is replaced."""
        return f"{self._num_opened}.{store.revision()}"

    @contextmanager
    def use(self) -> Iterator[Store]:
        """Yield the store, which is opened first if necessary.

        Raises:
            RequestError: If the index was deleted or cannot be read. An error in the query itself remains a
                `UserError`.
        """
        try:
            yield self._reopen_if_replaced()
        except KeyError as error:  # an image was removed between two reads
            raise RequestError(503, "the index changed during this request; try again", retry_after=1) from error
        except UserError as error:
            if error.__cause__ is None and not isinstance(error, CorruptDataError):
                raise
            self.close()  # the next request reopens the index, which may have been repaired by then
            raise RequestError(503, f"the index cannot be read: {error}", retry_after=5) from error

    def _reopen_if_replaced(self) -> Store:
        with self._lock:
            if self._store is not None and self._store.is_replaced:
                self._store.close()
                self._store = None
            if self._store is None:
                try:
                    self._store = self._open_checked()
                    self._num_opened += 1
                except UserError as error:
                    raise RequestError(503, f"the index is unavailable: {error}", retry_after=5) from error
            return self._store

    def _open_checked(self) -> Store:
        """Open a new store of the index.

        Raises:
            UserError: If the index does not exist, or belongs to another model.
        """
        store = open_store(self._location)
        if store.header.fingerprint != self._fingerprint:
            store.close()
            raise UserError(
                f"{self._location}: this is an index of the model '{store.header.model}', not of the "
                "server's model; serve it with its own model"
            )
        return store

    def close(self) -> None:
        """Close the store."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None


class _QueryModel:
    """Model for searches, used through the queue.

    Embeddings of captions are cached, because the same images are often hits of several queries.
    """

    def __init__(
        self,
        model: ModelQueue,
        curve: RelevanceCurve | None,
        thesaurus: Thesaurus,
        captions: LruCache[str, np.ndarray],
        expires: float,
    ) -> None:
        self.curve = curve
        self.related_words = thesaurus.related
        self._model = model
        self._captions = captions
        self._expires = expires

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, M E.

        Raises:
            UserError: If a text is empty.
            RequestError: If the time has run out. This also applies to the methods below.
        """
        cleaned = [clean_query(text, "a text of the query") for text in texts]
        return np.stack(self._results(self._model.embed_texts(cleaned, self._expires)))

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Return the embeddings of captions, M E. An empty caption yields zeros."""
        found = {caption: self._captions.get(caption) for caption in captions}
        missing = [caption for caption, vector in found.items() if vector is None and caption.strip()]
        if missing:
            for caption, vector in zip(missing, self.embed_texts(missing), strict=True):
                found[caption] = vector
                self._captions.put(caption, vector)
        nothing = np.zeros(self._model.ready().engine.embed_dim, np.float32)
        vectors = [nothing if (vector := found[caption]) is None else vector for caption in captions]
        return np.array(vectors, np.float32).reshape(len(captions), len(nothing))

    def embed_sample(self, captions: tuple[str, ...]) -> np.ndarray:
        """Return the embeddings of the captions of a sample, M E."""
        return self.embed_captions(captions)

    def embed_images(self, images: Sequence[Any]) -> np.ndarray:
        """Return the vectors with which to search for images that are similar to the given images, M E.

        The images are given as pixels.
        """
        return self.image_queries(np.stack(self._results(self._model.embed_images(images, self._expires))))

    def image_queries(self, vectors: np.ndarray) -> np.ndarray:
        """Convert the embeddings of images to the vectors with which to search for similar images, M E."""
        return self._model.ready().image_queries(vectors)

    def unknown_texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the texts in which an adapted model does not know any word. For other models, return no texts."""
        return self._model.ready().unknown_texts(texts)

    def _results(self, futures: "Sequence[Future[Any]]") -> list[Any]:
        try:
            return [future.result(max(0.0, self._expires - time.monotonic())) for future in futures]
        except TimeoutError as error:
            for future in futures:
                future.cancel()
            raise deadline_error() from error
