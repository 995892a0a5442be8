"""The protocol of a source of pairs. It has random access, so pairs can be read in any order."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class RawPair:
    """The bytes of one image file, and its caption. `name` tells people where the pair comes from.

    If an image has several captions, `more_captions` holds the others. Pairs of the same image have the same
    `image_name`. If it is empty, `name` is used for it.
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
        """All captions of the image, at least one."""
        return (self.caption, *self.more_captions)


@runtime_checkable
class PairSource(Protocol):
    """Pairs by index. If a pair is bad, reading it raises a `BadSample`."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        ...

    def caption(self, index: int) -> str:
        """Read the first caption of an image, without the image."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of an image, without the image."""
        ...

    def name(self, index: int) -> str:
        """The name of a pair in messages."""
        ...

    def image_name(self, index: int) -> str:
        """The name of a pair's image, which is not read. Pairs of the same image have the same."""
        ...

    def place(self, index: int) -> str:
        """The shard, table or folder that a pair lies in. Bad pairs are counted by place."""
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
        """Read the first caption of an image, without the image."""
        return self._source.caption(int(self._indices[index]))

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of an image, without the image."""
        return self._source.captions(int(self._indices[index]))

    def name(self, index: int) -> str:
        """The name of a pair in messages."""
        return self._source.name(int(self._indices[index]))

    def image_name(self, index: int) -> str:
        """The name of a pair's image, which is not read."""
        return self._source.image_name(int(self._indices[index]))

    def place(self, index: int) -> str:
        """The shard, table or folder that a pair lies in."""
        return self._source.place(int(self._indices[index]))
