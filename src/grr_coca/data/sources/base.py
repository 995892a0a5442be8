"""What all sources share: a pair, the protocol of a source, bad pairs and their causes, and the columns of tables."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np

from grr_coca.common.errors import UserError

MAX_TEXT = 2**20
"""Maximum number of bytes of a caption in a file or shard, or of all captions of an image."""


@dataclass(frozen=True)
class RawPair:
    """A pair as it was read: the bytes of an image file, and a caption. `name`: its place, for messages.

    If an image has several captions, `more_captions` has the others. Pairs of the same image have the same
    `image_name`; if that is empty, `name` is used.
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
    """A source of pairs, which can be read in any order. Reading a bad pair raises `BadSample`.

    What inherits from it has the first of its captions for a caption, and takes each pair for an image of its own.
    """

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        ...

    def caption(self, index: int) -> str:
        """Read the first caption of a pair. The image is not read."""
        return self.captions(index)[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of a pair. The image is not read."""
        ...

    def name(self, index: int) -> str:
        """The name of a pair, for messages."""
        ...

    def image_name(self, index: int) -> str:
        """The name of the image of a pair. Pairs of the same image have the same name. The image is not read."""
        return self.name(index)

    def place(self, index: int) -> str:
        """The shard, table or folder of a pair. Bad pairs are counted by place."""
        ...


class Cause(StrEnum):
    """The reasons why a pair is bad."""

    EMPTY_FILE = "empty file"
    NOT_AN_IMAGE = "not an image"
    BROKEN_IMAGE = "broken or truncated image"
    TOO_LARGE = "too large"
    NO_IMAGE = "no image"
    NO_CAPTION = "no caption"
    EMPTY_CAPTION = "empty caption"
    BAD_TEXT = "text is not UTF-8"
    BAD_RECORD = "broken record"
    DUPLICATE_KEY = "duplicate key"
    CUT_OFF = "cut off by the end of a truncated shard"
    UNREADABLE = "cannot be read"
    FORBIDDEN_PATH = "path leaves the data's folder"
    NOT_INSTALLED = "needs a package that is not installed"


class BadSample(UserError):  # noqa: N818 (it is the sample that is bad)
    """The error for a pair, or a file of a pair, that cannot be used. The message names it."""

    def __init__(self, message: str, cause: Cause = Cause.UNREADABLE) -> None:
        # `cause` has a default, because torch passes only the message of an error from a worker to its parent.
        super().__init__(message)
        self.cause = cause


def locate(ends: np.ndarray, index: int) -> tuple[int, int]:
    """Convert the index of a pair in a source of several parts to the index of its part, and its index there.

    Args:
        ends: for each part, the number of pairs up to its end.
        index: the index of the pair in the source.
    """
    if not len(ends) or not 0 <= index < ends[-1]:
        raise IndexError(index)
    part = int(np.searchsorted(ends, index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)


class Strings:
    """A fixed list of strings in little memory: one block of UTF-8 with offsets, not one object for each string."""

    def __init__(self, strings: Iterable[str]) -> None:
        content, ends = bytearray(), array("Q")
        for string in strings:
            content += string.encode("utf-8", "surrogatepass")
            ends.append(len(content))
        self._content = bytes(content)
        self._ends = np.array(ends, dtype=np.uint64)

    def buffers(self) -> tuple[bytes, memoryview]:
        """All strings as one block, and the end of each in it."""
        return self._content, self._ends.data

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self._content[start : int(self._ends[index])].decode("utf-8", "surrogatepass")


def stable_id(text: str) -> int:
    """A 63-bit id of a text, the same in every process."""
    content = text.encode("utf-8", "surrogatepass")  # file names that are not UTF-8 contain lone surrogates
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


# --- Columns of tables

IMAGE_COLUMNS = (
    "image_path", "image", "img_path", "img", "image_file", "image_filename", "image_name",
    "filepath", "file_path", "file_name", "filename", "file", "path", "name", "image_id", "id",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "title", "description", "comment", "sentence", "sentences")
"""Common names of the columns of images and of captions, the surest first. Case, spaces and dashes do not matter."""


def find_columns(names: Sequence[str], listing: str, needs_captions: bool = True) -> tuple[str, str | None]:
    """Find the column of image paths and the column of captions of a table, by their names.

    The second is None if `needs_captions` is False.

    Raises:
        UserError: a column is missing (the message lists the columns of the table), or is there twice.
    """
    plain = {_plain(name): name for name in reversed(names)}
    image = next((plain[name] for name in IMAGE_COLUMNS if name in plain), None)
    caption = next((plain[name] for name in CAPTION_COLUMNS if name in plain), None) if needs_captions else None
    if image is not None and (caption is not None or not needs_captions):
        for name in filter(None, (image, caption)):
            if names.count(name) > 1:
                raise UserError(f"{listing}: has several columns '{name}'; rename all but one")
        return image, caption
    if image is None and "url" in plain:
        raise UserError(f"{listing}: has URLs, and nothing is downloaded; make shards of it with img2dataset first")
    what, usual = ("the image's path", IMAGE_COLUMNS) if image is None else ("the caption", CAPTION_COLUMNS)
    found = ", ".join(map(str, names[:20])) or "none"
    raise UserError(f"{listing}: no column of {what}; found {found}; expected one of {', '.join(usual)}")


def first_column(names: Sequence[str], usual: Sequence[str]) -> int | None:
    """The index of the first column that has one of the usual names; None if no column has. Earlier names win."""
    plain = [_plain(name) for name in names]
    return next((plain.index(name) for name in usual if name in plain), None)


def as_captions(value: object) -> tuple[str, ...]:
    """Convert a cell of a table to captions: a text, or a list of texts. Other values give no captions."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(text for text in value if isinstance(text, str))
    return ()


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
