"""The protocol of a source: random access, so that any order can be drawn over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RawPair:
    """One pair as it lies on disk: the image's file, undecoded, and its caption. `name` tells a person where."""

    key: str
    name: str
    image: bytes
    caption: str


class PairSource(Protocol):
    """Pairs by index."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        ...

    def caption(self, index: int) -> str:
        """Read one caption, and not its image."""
        ...

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        ...


class Subset:
    """Some pairs of a source, in the order of `indices`."""

    def __init__(self, source: PairSource, indices: Sequence[int]) -> None:
        self._source = source
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        return self._source[self._indices[index]]

    def caption(self, index: int) -> str:
        """Read one caption, and not its image."""
        return self._source.caption(self._indices[index])

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        return self._source.name(self._indices[index])
