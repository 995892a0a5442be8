"""The protocol of a source of pairs. It has random access, so pairs can be read in any order."""

from dataclasses import KW_ONLY, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int


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


def locate(ends: Int[np.ndarray, " P"], index: int) -> tuple[int, int]:
    """The part that a pair lies in, and the number of the pair within this part.

    Args:
        ends: the number of pairs up to the end of each of P parts, which follow one another.
        index: the number of the pair, counted through all parts.
    """
    if not len(ends) or not 0 <= index < ends[-1]:
        raise IndexError(index)
    part = int(np.searchsorted(ends, index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)
