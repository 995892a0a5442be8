"""Finds the columns of a table that hold the paths of images and the captions.

The protocol of a source of pairs. It has random access, so pairs can be read in any order.

Many strings in little memory, and stable numeric ids of strings.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from grr_coca.errors import UserError


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


class Strings:
    """A fixed list of strings, kept as one block of UTF-8 with offsets. Millions of strings need no object each."""

    def __init__(self, strings: Iterable[str]) -> None:
        content, ends = bytearray(), []
        for string in strings:
            content += string.encode("utf-8", "surrogatepass")
            ends.append(len(content))
        self._content = bytes(content)
        self._ends = np.array(ends, dtype=np.uint64)

    def buffers(self) -> tuple[bytes, memoryview]:
        """All strings as one block, and where in it each ends."""
        return self._content, self._ends.data

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self._content[start : int(self._ends[index])].decode("utf-8", "surrogatepass")


def stable_id(text: str) -> int:
    """A 63-bit id of a text, the same in every process."""
    content = text.encode("utf-8", "surrogatepass")  # file names that are not UTF-8 hold lone surrogates
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


IMAGE_COLUMNS = (
    "image_path", "image", "img_path", "img", "image_file", "image_filename", "image_name",
    "filepath", "file_path", "file_name", "filename", "file", "path", "name", "image_id", "id",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "title", "description", "comment", "sentence", "sentences")
"""Common names of the two columns, the surest first. Case, spaces and dashes do not matter."""


def find_columns(names: Sequence[str], listing: str, needs_captions: bool = True) -> tuple[str, str | None]:
    """The names of the column of paths and of the column of captions, None if there is none and none is needed.

    Raises:
        UserError: one that is needed is missing; the message lists the columns of the table.
    """
    plain = {_plain(name): name for name in reversed(names)}
    image = next((plain[name] for name in IMAGE_COLUMNS if name in plain), None)
    caption = next((plain[name] for name in CAPTION_COLUMNS if name in plain), None)
    if image is not None and (caption is not None or not needs_captions):
        return image, caption
    if image is None and "url" in plain:
        raise UserError(f"{listing}: holds URLs, and nothing is fetched; make shards of it with img2dataset first")
    what, usual = ("the image's path", IMAGE_COLUMNS) if image is None else ("the caption", CAPTION_COLUMNS)
    found = ", ".join(map(str, names[:20])) or "none"
    raise UserError(f"{listing}: no column of {what}; found {found}; expected one of {', '.join(usual)}")


def first_column(names: Sequence[str], usual: Sequence[str]) -> int | None:
    """The number of the column with the surest of the usual names, None if there is none."""
    plain = [_plain(name) for name in names]
    return next((plain.index(name) for name in usual if name in plain), None)


def as_captions(value: object) -> tuple[str, ...]:
    """The captions in a cell, which holds a text, a list of texts, or neither (no captions)."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(text for text in value if isinstance(text, str))
    return ()


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
