"""The interface of a store, which keeps an index in a folder or on a Milvus server, and the values that it exchanges.

Shapes: N images, E embedding width.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np

from grr_coca.infer.calibration import Certainty
from grr_coca.search.entry import Entry, Failure, Header, ImagePlace, Stamp
from grr_coca.search.fields import FieldValue, Kind
from grr_coca.search.filters import Filter
from grr_coca.search.photo import Photo

SAMPLE = 4096
"""Number of images in the sample of a library. Relevances compare a hit with it."""
_MAX_ROUNDING = 0.01
"""How far the length of an embedding in half precision may be from 1."""
SAMPLE_CAPTIONS = 64
"""Number of captions in the sample of a library."""


def is_of_unit_length(vector: np.ndarray) -> bool:
    """True for an embedding as a model gives it, rounded to half precision. False for one with NaN."""
    return abs(float(np.linalg.norm(vector.astype(np.float32))) - 1) < _MAX_ROUNDING


class ImageState(NamedTuple):
    """The state of an image when it was indexed, to find out whether it has changed.

    `digest`: of its bytes, empty if it could not be read; `fields`: the columns of its table; `sidecars`: that of its
    `Photo`, None if that was not read yet.
    """

    stamp: Stamp
    digest: str
    fields: Mapping[str, FieldValue] = MappingProxyType({})
    sidecars: int | None = None


class Match(NamedTuple):
    """The id of an image and its score. An id is valid within one snapshot."""

    id: int
    score: float


HASHED = np.dtype([("id", np.int64), ("phash", np.int64), ("digest", "S32")])
"""The columns of `Store.hashes`, by which near-duplicates are found. `phash`: its 64 bits as a signed number."""


class LibrarySample(NamedTuple):
    """A random sample of the images: at most `SAMPLE` embeddings (float32) and `SAMPLE_CAPTIONS` captions."""

    vectors: np.ndarray
    captions: tuple[str, ...]


class FieldSummary(NamedTuple):
    """The values of a field over all images.

    `kind`: `text` if any value is a text; `values`: the most frequent values with the number of images of each;
    `all_differ`: True if no two images have the same; `low`, `high`: the smallest and the largest value, None if no
    image has the field.
    """

    kind: Kind
    values: list[tuple[FieldValue, int]]
    all_differ: bool
    low: FieldValue | None
    high: FieldValue | None

    @classmethod
    def of(cls, found: Iterable[FieldValue], count: int) -> "FieldSummary":
        """The summary of the values of all images. `count`: see `Store.summary`."""
        counts = Counter(found)
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


class CheckedIndex(NamedTuple):
    """The number of images of an index that was checked, and of embeddings that have no checksum yet, as an older
    version wrote them."""

    images: int
    without_checksum: int


class ImageDescription(NamedTuple):
    """Caption and embedding of an image, and what the model knows of the caption."""

    caption: str
    embedding: np.ndarray
    certainty: Certainty


class Touch(NamedTuple):
    """An image with unchanged bytes and a new stamp, and its new offset if it is a member of a shard."""

    name: str
    stamp: Stamp
    offset: int | None


class PhotoUpdate(NamedTuple):
    """What the camera and people wrote into an image of the index, and by what its copies are found, read again."""

    name: str
    photo: Photo
    phash: int | None = None
    look: bytes = b""


@dataclass
class Changes:
    """The changes of one commit.

    `added`: images with their embeddings; they replace those with the same names. `touched`: images with unchanged
    bytes. `noted`: what cameras and people wrote, in place of what was known. `removed`: names of images or failures.
    `failed`: images that could not be read.
    """

    added: list[tuple[Entry, np.ndarray]] = field(default_factory=list)
    touched: list[Touch] = field(default_factory=list)
    noted: list[PhotoUpdate] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.added) + len(self.touched) + len(self.noted) + len(self.removed) + len(self.failed)


class Store(Protocol):
    """A store of images by name, each with an embedding of unit length in half precision.

    All reads within one `snapshot` see the same committed state. Only one process writes at a time.
    """

    header: Header
    location: str

    def close(self) -> None:
        """Close files and connections."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """A context in which all reads see the newest state that was committed when it began."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    # --- Reading

    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """The images whose embeddings have the largest dot products with a vector of width E, best first. Exact."""
        ...

    def word_matches(self, text: str, count: int, where: Filter | None = None) -> list[Match]:
        """The images whose captions, file names, titles or keywords contain words of a text, best first (BM25).

        Of a long text, the first words count. The list is empty if this store has no full-text index.
        """
        ...

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """The entries of these ids, in the same order."""
        ...

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """The embeddings of these ids in the same order, as float32: N E."""
        ...

    def sample(self) -> LibrarySample:
        """A random sample of the images. The same state has the same sample."""
        ...

    def columns(self) -> frozenset[str]:
        """The names of all fields that come from tables."""
        ...

    def matching(self, where: Filter) -> Iterator[Entry]:
        """All images that match a filter."""
        ...

    def revision(self) -> str:
        """A text that changes with each commit."""
        ...

    def ids_of(self, draws: Sequence[int]) -> dict[int, int]:
        """The ids of images in this snapshot, by their `Entry.draw`. Images that are not in the index are left out."""
        ...

    def newest_first(self, where: Filter | None = None) -> np.ndarray:
        """The ids of all images that match a filter: the newest date first, and by name within one date."""
        ...

    def summary(self, field: str, count: int) -> FieldSummary:
        """The values of a field; `count`: how many of the most frequent ones to return."""
        ...

    def hashes(self) -> np.ndarray:
        """Ids, perceptual hashes and digests of all images: N rows of `HASHED`."""
        ...

    def everything(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """All entries with their embeddings (float16)."""
        ...

    def failures(self) -> list[Failure]:
        """The images that could not be read at the last attempt."""
        ...

    def known(self, names: Sequence[str]) -> dict[str, ImageState]:
        """The known state of these images, by name. Includes images that could not be read; leaves out unknown ones."""
        ...

    def twins(self, digests: Sequence[str]) -> dict[str, ImageDescription]:
        """What is known of the images with these digests, by digest."""
        ...

    def roots(self) -> list[str]:
        """The arguments (files, folders, patterns) through which images or failures were found."""
        ...

    def places(self, root: str) -> Iterator[ImagePlace]:
        """The places of the images and failures that were found through an argument."""
        ...

    def excluded(self) -> tuple[str, ...]:
        """The patterns of what updates leave out."""
        ...

    def check(self) -> CheckedIndex:
        """Read everything, and compare it with its checksums. This may take minutes.

        Raises:
            DamagedError: something is not what was written; the message says how to restore it.
            UserError: this store keeps no checksums.
        """
        ...

    def was_imported(self) -> bool:
        """True if it was made of a file from elsewhere, which may name any picture and any model."""
        ...

    # --- Writing

    def claim(self) -> None:
        """Take the lock of the writer, until the store is closed.

        Raises:
            UserError: another process writes; the message names it.
        """
        ...

    def exclude(self, patterns: Sequence[str]) -> None:
        """Remember the patterns of what updates leave out, in place of earlier ones.

        Raises:
            UserError: as in `commit`.
        """
        ...

    def mark_as_imported(self) -> None:
        """Remember that it was made of a file from elsewhere.

        Raises:
            UserError: as in `commit`.
        """
        ...

    def commit(self, changes: Changes) -> None:
        """Write changes. When this returns, all are on disk. If it raises, none is; a server may have written a part.

        Raises:
            UserError: another process writes, the disk is full, or the server does not answer. Earlier commits stay.
        """
        ...

    def compact(self) -> bool:
        """Free the space of removed images if there are enough of them. Returns True if it did.

        Raises:
            UserError: as in `commit`.
        """
        ...
