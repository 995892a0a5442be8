"""The protocol of a source: random access, so that any order can be drawn over it."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class RawPair:
    """One image as it lies on disk, undecoded, and its caption. `name` tells a person where.

    An image with several captions has the others in `more_captions`. Pairs of the same image have the same
    `image_name`, which is `name` where nothing else is given.
    """

    key: str
    name: str
    image: bytes
    caption: str
    _: KW_ONLY
    more_captions: tuple[str, ...] = ()
    image_name: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """One caption or more."""
        return (self.caption, *self.more_captions)


@runtime_checkable
class PairSource(Protocol):
    """Pairs by index. What is wrong with one pair is raised as a `BadSample` when that pair is read."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        ...

    def caption(self, index: int) -> str:
        """Read one caption, the first, and not its image."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of one image, and not the image."""
        ...

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        ...

    def place(self, index: int) -> str:
        """The shard, table or folder that a pair lies in, for counts."""
        ...


class Subset:
    """Some pairs of a source, in the order of `indices`."""

    def __init__(self, source: PairSource, indices: Sequence[int] | np.ndarray) -> None:
        self._source = source
        self._indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        return self._source[int(self._indices[index])]

    def caption(self, index: int) -> str:
        """Read one caption, the first, and not its image."""
        return self._source.caption(int(self._indices[index]))

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of one image, and not the image."""
        return self._source.captions(int(self._indices[index]))

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        return self._source.name(int(self._indices[index]))

    def place(self, index: int) -> str:
        """The shard, table or folder that a pair lies in."""
        return self._source.place(int(self._indices[index]))
