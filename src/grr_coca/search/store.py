"""The interface of what keeps an index, in a folder or on a Milvus server, and the values that it takes and gives.

Shapes: N pictures, E embedding width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np

from grr_coca.search.entry import Entry, Failure, FieldValue, Header, PicturePlace, Stamp
from grr_coca.search.filters import Filter

SAMPLE = 4096
"""Number of pictures that a query is compared with, to see how far a hit stands out."""
SAMPLE_CAPTIONS = 64
"""Number of captions of these pictures that a query is compared with, to see how close any caption is."""


class Known(NamedTuple):
    """What an index knows of a picture.

    `digest`: that of its bytes, empty if it could not be read; `fields`: the columns of its table.
    """

    stamp: Stamp
    digest: str
    fields: Mapping[str, FieldValue] = MappingProxyType({})


class Match(NamedTuple):
    """A picture's id and its score. An id is valid within a snapshot."""

    id: int
    score: float


HASHED = np.dtype([("id", np.int64), ("phash", np.int64), ("digest", "S32")])
"""The columns of `Store.hashes`, by which near-duplicates are found."""


class LibrarySample(NamedTuple):
    """Embeddings in 32 bits of at most `SAMPLE` pictures, and captions of at most `SAMPLE_CAPTIONS`."""

    vectors: np.ndarray
    captions: tuple[str, ...]


class Described(NamedTuple):
    """What a model said of a picture, and what was measured of its pixels."""

    caption: str
    embedding: np.ndarray
    phash: int
    width: int
    height: int


class Touch(NamedTuple):
    """A picture whose bytes are as they were, with its new stamp, and its new place if it lies in a shard."""

    name: str
    stamp: Stamp
    offset: int | None


@dataclass
class Changes:
    """One step from a committed state to the next.

    `added`: pictures with their embeddings; they replace those of the same names. `touched`: those whose
    bytes are as they were. `removed`: names of pictures or failures.
    """

    added: list[tuple[Entry, np.ndarray]] = field(default_factory=list)
    touched: list[Touch] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.added) + len(self.touched) + len(self.removed) + len(self.failed)


class Store(Protocol):
    """Pictures by name, each with an embedding of unit length that is kept in half precision.

    Reading is done within `snapshot`: all of it sees one committed state. Writing is for one process at a time.
    """

    header: Header
    location: str

    def close(self) -> None:
        """Let go of files and connections."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """The newest committed state, held until the context ends."""
        ...

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    # --- reading

    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """The pictures of highest product with a vector of width E, the best first; exact."""
        ...

    def word_matches(self, text: str, count: int, where: Filter | None = None) -> list[Match]:
        """The pictures whose captions and titles hold words of a text, the best first (BM25).

        An empty list if this store has no full-text index.
        """
        ...

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """The entries of some ids, in their order."""
        ...

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Embeddings in 32 bits: N E, in the order of the ids."""
        ...

    def sample(self) -> LibrarySample:
        """Some pictures, drawn at random by their names. The same state has the same sample."""
        ...

    def columns(self) -> frozenset[str]:
        """The fields that some picture has besides those that all have."""
        ...

    def matching(self, where: Filter) -> Iterator[Entry]:
        """All pictures that a filter picks."""
        ...

    def hashes(self) -> np.ndarray:
        """Ids, perceptual hashes (as 64-bit numbers) and digests of all pictures: N rows of `HASHED`."""
        ...

    def everything(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """All entries with their embeddings in half precision."""
        ...

    def failures(self) -> list[Failure]:
        """Pictures that could not be read when they were last tried."""
        ...

    def known(self, names: Sequence[str]) -> dict[str, Known]:
        """What is known of some pictures, those that could not be read among them."""
        ...

    def twins(self, digests: Sequence[str]) -> dict[str, Described]:
        """What was said of pictures of these digests, by digest."""
        ...

    def roots(self) -> list[str]:
        """The arguments that pictures or failures were found by."""
        ...

    def places(self, root: str) -> Iterator[PicturePlace]:
        """Names and places of the pictures and failures that were found by an argument."""
        ...

    # --- writing

    def claim(self) -> None:
        """Become the one that writes, until the store is closed.

        Raises:
            UserError: another process writes; the message names it.
        """
        ...

    def commit(self, changes: Changes) -> None:
        """Write changes: all of them are durable when this returns, or none is.

        Raises:
            UserError: another process writes, or the disk is full or the server gone; what was committed before stays.
        """
        ...

    def compact(self) -> bool:
        """Free the space of pictures that are gone, if that is worth it. Returns whether it was done.

        Raises:
            UserError: as `commit`.
        """
        ...
