"""Interface of stores. A store contains an index, either in a folder or on a server.

A store implements the class methods `open`, `create` and `remove`, the method `close`, and the following operations:
`__len__`, `get`, `scan`, `nearest`, `word_matches`, `commit`, `revision`, `begin` (for `snapshot`), `claim`, `compact`,
`failures` and `notes`. A store on a server needs neither `claim` nor
`compact`, and may do without a full-text index (`word_matches`). All other methods are implemented through these
operations. They may read more data than necessary, so a store overrides those that it can make faster.

Shapes: N images, E embedding width.
"""

import heapq
import json
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from grr_coca.common import plugins
from grr_coca.common.errors import UserError
from grr_coca.infer.calibration import CaptionConfidence
from grr_coca_search.entry import Entry, Failure, Header, ImageLocation, Photo, Stamp, chunks, name_id
from grr_coca_search.fields import FIELDS, FieldValue, Kind
from grr_coca_search.filters import Comparison, Filter, OneOf

SAMPLE = 4096
"""Maximum number of images in the sample of a library, with which hits are compared to compute their relevances."""
SAMPLE_CAPTIONS = 64
"""Maximum number of captions in the sample of a library."""


class ImageState(NamedTuple):
    """State of an image when it was indexed, by which changes are detected.

    Attributes:
        stamp: Size and modification time.
        digest: Digest of the image's bytes. Empty if the image could not be read.
        fields: Values of the image's columns, if it was found through a table.
        sidecars: See `Photo.sidecars`. None if the metadata has not been read yet.
    """

    stamp: Stamp
    digest: str
    fields: Mapping[str, FieldValue] = MappingProxyType({})
    sidecars: int | None = None

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Return the state of an image that has been read."""
        return cls(entry.stamp, entry.digest, entry.fields, None if entry.photo is None else entry.photo.sidecars)


class Match(NamedTuple):
    """Id of an image, and its score. An id is valid within one snapshot."""

    id: int
    score: float


class StoredImage(NamedTuple):
    """Image in a store, with its embedding (float16) if requested."""

    id: int
    entry: Entry
    vector: np.ndarray | None = None


HASH_ROW = np.dtype([("id", np.int64), ("phash", np.int64), ("digest", "S32")])
"""Data type of the rows of `Store.hashes`, by which near-duplicates are found. `phash` has 64 bits, and is stored as a
signed number."""


class LibrarySample(NamedTuple):
    """Random sample of the images: at most `SAMPLE` embeddings (float32, N E) and `SAMPLE_CAPTIONS` captions."""

    vectors: np.ndarray
    captions: tuple[str, ...]


class FieldSummary(NamedTuple):
    """Values of a field over all images.

    Attributes:
        kind: `text` if any value is a text, and otherwise `number`.
        values: The most frequent values, each with its number of images, in order of decreasing frequency.
        all_differ: Whether all images that have the field have different values.
        low, high: Smallest and largest value. None if no image has the field.
    """

    kind: Kind
    values: list[tuple[FieldValue, int]]
    all_differ: bool
    low: FieldValue | None
    high: FieldValue | None

    @classmethod
    def of(cls, counts: Counter[FieldValue], count: int) -> "FieldSummary":
        """Summarize the values of a field from the number of images that have each value.

        For `count`, see `Store.summaries`.
        """
        # As in SQL, numbers come before texts.
        ordered = sorted(counts, key=lambda value: (isinstance(value, str), value))
        most = sorted(ordered, key=lambda value: -counts[value])[:count]
        return cls(
            kind="text" if any(isinstance(value, str) for value in counts) else "number",
            values=[(value, counts[value]) for value in most],
            all_differ=counts.total() == len(counts),
            low=ordered[0] if ordered else None,
            high=ordered[-1] if ordered else None,
        )


def summaries_of(groups: Iterable[Sequence[Entry]], fields: Iterable[str], count: int) -> dict[str, FieldSummary]:
    """Summarize the values of some fields, by field. A value is counted at most once in each group of images.

    For `count`, see `Store.summaries`.
    """
    counters: dict[str, Counter[FieldValue]] = {name: Counter() for name in fields}
    for group in groups:
        for name, counter in counters.items():
            counter.update({value for entry in group for value in entry.values_of(name)})
    return {name: FieldSummary.of(counter, count) for name, counter in counters.items()}


class CheckedIndex(NamedTuple):
    """Number of images in a checked index, and number of its embeddings that do not have a checksum.

    The latter were written by an older version.
    """

    images: int
    without_checksum: int


class ImageDescription(NamedTuple):
    """Caption and embedding of an image, the model's confidence in the caption, and the model's tags for the image."""

    caption: str
    embedding: np.ndarray
    caption_confidence: CaptionConfidence
    tags: tuple[str, ...] = ()


class StampUpdate(NamedTuple):
    """New stamp of an image whose bytes are unchanged, and its new offset if it is a member of a shard."""

    name: str
    stamp: Stamp
    offset: int | None


class PhotoUpdate(NamedTuple):
    """New metadata of an image in the index, and its new hash and small copy for finding near-duplicates.

    If `phash` is None or `pixel_signature` is empty, the value in the index is kept.
    """

    name: str
    photo: Photo
    phash: int | None = None
    pixel_signature: bytes = b""


@dataclass(kw_only=True)
class Changes:
    """Changes of one commit.

    Attributes:
        added: Images with their embeddings. They replace images with the same names.
        touched: New stamps of images with unchanged bytes.
        noted: New metadata of images, which replaces the known metadata.
        removed: Names of images or failures to remove. Unknown names have no effect.
        failed: Images that could not be read. If the index has an image or failure of the same name, it is replaced.
        notes: Notes, which replace those with the same keys; see `Store.notes`.
    """

    added: list[tuple[Entry, np.ndarray]] = field(default_factory=list)
    touched: list[StampUpdate] = field(default_factory=list)
    noted: list[PhotoUpdate] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, vars(self).values()))


_DIGESTS_PER_READ = 500
"""Maximum number of digests per read."""


class Store(ABC):
    """Store of images by name, each with a unit-length embedding in half precision.

    Used as a context manager, a store closes itself at the end.

    All reads of a thread within one `snapshot` see the same committed state. Only one process can write at a time. The
    id of an image is its `Entry.name_hash`, unless a store overrides `ids_of`.
    """

    def __init__(self, location: str, header: Header) -> None:
        self.location = location
        self.header = header
        self._thread = threading.local()

    # --- The index as a whole

    @classmethod
    @abstractmethod
    def open(cls, location: str, *, is_optional: bool = False) -> Self | None:
        """Open an index. Return None if it is optional and does not exist.

        Raises:
            UserError: If the index is not found, or cannot be reached or read.
        """

    @classmethod
    @abstractmethod
    def create(cls, location: str, header: Header) -> Self:
        """Create an index without images, and open it.

        The caller must have checked, with `open`, that the location has no index. If another process has created an
        index in the same folder since then, that index is opened, whose header may differ.

        Raises:
            UserError: If the index cannot be created there.
        """

    @classmethod
    @abstractmethod
    def remove(cls, location: str) -> None:
        """Remove an index, even if its creation was interrupted. No other process may be using the index.

        Raises:
            UserError: If the index cannot be removed.
        """

    @classmethod
    def is_there(cls, location: str) -> bool:  # noqa: ARG003
        """Return whether a location is that of an index. The base class assumes this of every location."""
        return True

    @property
    def is_replaced(self) -> bool:
        """Whether another index has replaced the opened one."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Close files and connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> CheckedIndex:
        """Read all data, and compare the data with the checksums. This may take minutes.

        Raises:
            CorruptDataError: If data differ from their checksum. The message describes how to restore the index.
            UserError: If this store has no checksums.
        """
        raise UserError(f"{self.location}: --check supports only indexes in a folder; a server checks its files itself")

    # --- Operations that each store implements

    @contextmanager
    def snapshot(self) -> Iterator[Any]:
        """Return a context in which all reads of this thread see the newest state that was committed at its beginning.

        A snapshot within another snapshot is part of the outer one. The context manager yields the result of `begin`.
        """
        now = getattr(self._thread, "snapshot", None)
        if now is not None:
            yield now
            return
        with self.begin() as now:
            self._thread.snapshot = now
            try:
                yield now
            finally:
                self._thread.snapshot = None

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield the current snapshot of this thread. If the thread has none, yield a new one that only this read uses.

        Iterators use this method, because it is unknown when they will end.
        """
        now = getattr(self._thread, "snapshot", None)
        with nullcontext(now) if now is not None else self.begin() as given:
            yield given

    @abstractmethod
    def begin(self) -> AbstractContextManager[Any]:
        """Begin a snapshot, and return the state that its reads need, such as a connection.

        `snapshot` and `reading` call this method.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def get(self, ids: Sequence[int], *, vectors: bool = False) -> Iterator[StoredImage]:
        """Return the images with the given ids, in any order. Ids that are not in the index are skipped."""

    @abstractmethod
    def scan(self, where: Filter | None = None, *, vectors: bool = False) -> Iterator[StoredImage]:
        """Return all images that match a filter, or all images if it is None, in the order of their ids."""

    @abstractmethod
    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """Return the images whose embeddings have the largest dot products with a vector of width E, best first.

        The result is exact.
        """

    def word_matches(self, text: str, count: int, where: Filter | None = None) -> list[Match]:  # noqa: ARG002
        """Return the images whose captions, file names, titles or keywords contain words of a text, best first by
        BM25.

        Only the first words of a long text count. The list is empty if this store has no full-text index.
        """
        return []

    @abstractmethod
    def revision(self) -> str:
        """Return a text that changes with each commit."""

    @abstractmethod
    def failures(self, names: Sequence[str] | None = None) -> list[Failure]:
        """Return the images that could not be read at the last attempt, sorted by name: all of them, or those with the
        given names.
        """

    @abstractmethod
    def notes(self) -> Mapping[str, str]:
        """Return the notes on the index by key.

        `exclude` is a JSON list of the patterns of excluded files, and `imported` exists if the index was imported from
        a Parquet file. Both may be missing, and a store may have notes with other keys.
        """

    def claim(self) -> None:  # noqa: B027 (a server coordinates writers itself)
        """Acquire the writer lock until the store is closed.

        Raises:
            UserError: If another process is writing. The message names the process.
        """

    @abstractmethod
    def commit(self, changes: Changes) -> None:
        """Write changes. When this returns, all changes are on disk.

        If this raises an error, a store in a folder has not written any change. A store on a server may have written
        some of the changes.

        Raises:
            UserError: If another process is writing, the disk is full, or the server does not answer. Earlier commits
                are kept.
        """

    def compact(self) -> bool:
        """Free the space of removed images, if there are enough of them, and return whether space was freed.

        Raises:
            UserError: For the same reasons as `commit`.
        """
        return False

    # --- Methods that are implemented through these operations

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """Return the entries of the images with the given ids, in the same order.

        Raises:
            UserError: If an image no longer exists.
        """
        found = {row.id: row.entry for row in self.get(ids)}
        self._require_all(ids, found)
        return [found[identity] for identity in ids]

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Return the embeddings of the images with the given ids, in the same order, as float32, N E.

        Raises:
            UserError: If an image no longer exists.
        """
        found = {row.id: row.vector for row in self.get(ids, vectors=True)}
        self._require_all(ids, found)
        return np.array([found[identity] for identity in ids], np.float32).reshape(len(ids), self.header.embed_dim)

    def _require_all(self, ids: Sequence[int], found: Mapping[int, object]) -> None:
        """Check that all ids were found. Otherwise, raise a `UserError` whose cause is a `KeyError`."""
        if missing := set(ids).difference(found):
            raise UserError(
                f"{self.location}: requested images that no longer exist: {len(missing):,} of {len(set(ids)):,}"
                f"{self._missing_image_hint}"
            ) from KeyError(min(missing))

    _missing_image_hint = "; search again"
    """End of the error message: another possible reason why an image id is missing, if any, and how to fix this."""

    def sample(self) -> LibrarySample:
        """Return a random sample of the images. While the index does not change, neither does the sample."""
        drawn = heapq.nsmallest(SAMPLE, self.scan(vectors=True), key=lambda row: row.entry.name_hash)
        vectors = np.array([row.vector for row in drawn], np.float32).reshape(len(drawn), self.header.embed_dim)
        return LibrarySample(vectors, tuple(row.entry.caption for row in drawn[:SAMPLE_CAPTIONS]))

    def columns(self) -> frozenset[str]:
        """Return the names of all fields from tables."""
        return frozenset(name for row in self.scan() for name in row.entry.fields)

    def matching(self, where: Filter) -> Iterator[Entry]:
        """Return the entries of all images that match a filter, in the order of their ids."""
        return (row.entry for row in self.scan(where))

    def everything(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """Yield all entries with their embeddings (float16)."""
        for row in self.scan(vectors=True):
            assert row.vector is not None
            yield row.entry, row.vector

    def ids_of(self, draws: Sequence[int]) -> dict[int, int]:
        """Return a mapping from the `Entry.name_hash` of images to their ids in this snapshot.

        Images that are not in the index are omitted.
        """
        return {row.entry.name_hash: row.id for row in self.get(draws)}

    def newest_first(self, where: Filter | None = None) -> np.ndarray:
        """Return the ids of all images that match a filter, newest first. Images of one date are sorted by name."""
        found = sorted(((row.entry.date, row.entry.name, row.id) for row in self.scan(where)), key=lambda row: row[1])
        return np.array([row[2] for row in sorted(found, key=lambda row: row[0], reverse=True)], np.int64)

    def summaries(self, fields: Iterable[str], count: int, where: Filter | None = None) -> dict[str, FieldSummary]:
        """Summarize the values of some fields over all images that match a filter, by field.

        `count` is the maximum number of values to return for a field. The most frequent values are returned.
        """
        return summaries_of(([row.entry] for row in self.scan(where)), fields, count)

    def hashes(self) -> np.ndarray:
        """Return the ids, perceptual hashes and digests of all images: N rows of `HASH_ROW`."""
        return np.fromiter(((row.id, row.entry.phash, row.entry.digest) for row in self.scan()), HASH_ROW)

    def known(self, names: Sequence[str]) -> dict[str, ImageState]:
        """Return the known state of the given images, by name.

        Images that could not be read are included if their stamp is known. Unknown names are omitted.
        """
        with self.snapshot():
            found = {one.name: ImageState(one.stamp, "") for one in self.failures(names) if one.stamp is not None}
            ids = self.ids_of([name_id(name) for name in names])
            return found | {row.entry.name: ImageState.of(row.entry) for row in self.get(list(ids.values()))}

    def find_by_digest(self, digests: Sequence[str]) -> dict[str, ImageDescription]:
        """Return the descriptions of images with the given digests, by digest. Unknown digests are omitted."""
        found: dict[str, ImageDescription] = {}
        for chunk in chunks(digests, _DIGESTS_PER_READ):
            for row in self.scan(OneOf("digest", tuple(chunk)), vectors=True):
                assert row.vector is not None
                known = row.entry
                found[known.digest] = ImageDescription(known.caption, row.vector, known.caption_confidence, known.tags)
        return found

    def roots(self) -> list[str]:
        """Return the arguments (files, folders, patterns) through which images or failures were found, sorted."""
        with self.snapshot():
            return sorted({row.entry.root for row in self.scan()} | {failure.root for failure in self.failures()})

    def locations(self, root: str) -> Iterator[ImageLocation]:
        """Yield the locations of the images and failures that were found through an argument."""
        for row in self.scan(Comparison("root", "=", root)):
            yield ImageLocation.of(row.entry.name, row.entry.file, row.entry.offset)
        yield from (ImageLocation.of_name(one.name) for one in self.failures() if one.root == root)

    def excluded(self) -> tuple[str, ...]:
        """Return the patterns of files that updates exclude, as in .gitignore."""
        return tuple(json.loads(self.notes().get("exclude", "[]")))

    def exclude(self, patterns: Sequence[str]) -> None:
        """Store the patterns of files that updates exclude. They replace all earlier patterns.

        Raises:
            UserError: For the same reasons as `commit`.
        """
        self.commit(Changes(notes={"exclude": json.dumps(list(patterns))}))

    def was_imported(self) -> bool:
        """Return whether the index was imported from a foreign file, which may name any image and any model."""
        return "imported" in self.notes()


# --- Facets: the fields by which images can be filtered, and the values of these fields

_MAX_VALUES = 100
"""Maximum number of values that are listed for a field. The most frequent values are listed."""

Facet = dict[str, object]
"""Facet of a field. `field` is the name of the field, and `kind` is `text`, `number` or `date`. A facet of kind `text`
also has `values`, a list of pairs of a value and its number of images. Facets of the other kinds have `min` and `max`.
"""


def facet_fields(columns: Iterable[str]) -> list[str]:
    """Return the fields that may be facets, in display order: fields from tables (`columns`) by name, then others."""
    return list(dict.fromkeys([*sorted(columns), *(name for name, field in FIELDS.items() if field.is_facet)]))


def facets(store: Store) -> list[Facet]:
    """Return the facets of an index.

    Raises:
        UserError: If the index cannot be read.
    """
    return _to_facets(store.summaries(facet_fields(store.columns()), _MAX_VALUES))


def facets_of(entries: Sequence[Entry], fields: Iterable[str]) -> list[Facet]:
    """Return the facets of the given images for the given fields. Fields without a useful facet are omitted."""
    return _to_facets(summaries_of(([entry] for entry in entries), fields, _MAX_VALUES))


def value_counts(store: Store, fields: Iterable[str], where: Filter) -> list[Facet]:
    """Return the values of the given fields among the images that match a filter, each with its number of images.

    Numbers and dates are omitted. Text fields are included even if all of their values differ.

    Raises:
        UserError: If the index cannot be read.
    """
    return _to_counts(store.summaries(fields, _MAX_VALUES, where))


def value_counts_of(groups: Sequence[Sequence[Entry]], fields: Iterable[str]) -> list[Facet]:
    """Return the most frequent values of the given fields, each with the number of groups that have the value.

    Numbers and dates are omitted. Text fields are included even if all of their values differ.

    A group has a value if at least one of its near-duplicates has it, because a filter for this value would also select
    that group.
    """
    return _to_counts(summaries_of(groups, fields, _MAX_VALUES))


def _to_counts(summaries: Mapping[str, FieldSummary]) -> list[Facet]:
    return [
        {"field": field, "kind": "text", "values": [list(pair) for pair in found.values]}
        for field, found in summaries.items()
        if found.kind == "text" and found.low is not None and not _is_date(field)
    ]


def _is_date(field: str) -> bool:
    return field in FIELDS and FIELDS[field].is_date


def _to_facets(summaries: Mapping[str, FieldSummary]) -> list[Facet]:
    found = (_to_facet(field, summary) for field, summary in summaries.items())
    return [facet for facet in found if facet is not None]


def _to_facet(field: str, found: FieldSummary) -> Facet | None:
    """Return the facet of a field.

    Return None if no image has the field, or if its values are texts that all differ, such as titles.
    """
    if found.low is None:
        return None
    is_date = _is_date(field) and isinstance(found.low, str)  # false for a table column `taken` that contains numbers
    if is_date or found.kind == "number":
        return {"field": field, "kind": "date" if is_date else "number", "min": found.low, "max": found.high}
    if found.all_differ:
        return None
    return {"field": field, "kind": "text", "values": [list(pair) for pair in found.values]}


# --- Stores by location: a folder or a server


def _store_class(location: str) -> type[Store]:
    """Return the store class for a location.

    It is the entry point in the group `grr_coca.stores` that has the same name as the location's scheme. A location
    without a known scheme is a folder.
    """
    scheme, colon, _ = location.partition(":")
    kind: type[Store] | None = plugins.find("grr_coca.stores", scheme) if colon else None
    return kind or plugins.find("grr_coca.stores", "folder")  # type: ignore[return-value]


def is_index(location: str) -> bool:
    """Return whether a location is that of an index, rather than that of an icon set or of a folder of images."""
    return _store_class(location).is_there(location)


def open_store(location: str) -> Store:
    """Open the store of an index: a folder, `http://HOST:PORT/COLLECTION`, or `milvus:FILE`.

    Raises:
        UserError: If the index is not found, is corrupt, was written by a newer version, or cannot be reached.
    """
    store = _store_class(location).open(location)
    assert store is not None
    return store


def find_store(location: str) -> Store | None:
    """Open the store of an index. Return None if the location has no index, but an index can be created there.

    Raises:
        UserError: If the location has other content or cannot be reached, or if its index cannot be opened.
    """
    return _store_class(location).open(location, is_optional=True)


def make_store(location: str, header: Header) -> Store:
    """Create a store without images.

    Raises:
        UserError: If the store cannot be created there.
    """
    return _store_class(location).create(location, header)


def remove_store(location: str) -> None:
    """Remove an index, even if its creation was interrupted. No other process may be using the index.

    Raises:
        UserError: If the index cannot be removed, or the server cannot be reached.
    """
    _store_class(location).remove(location)
