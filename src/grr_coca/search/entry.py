"""What an index holds: its header, and an entry for each picture.

Words of a text, as the full-text index has them, and lists cut into pieces.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from grr_coca.data.image_files import ImageFile, Span, member_of_name, shard_of_name
from grr_coca.errors import UserError

Item = TypeVar("Item")


def search_words(text: str) -> list[str]:
    """The words of a text in lower case, each once."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.lower())))


def pieces(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last of which may be shorter."""
    source = iter(items)
    while piece := list(islice(source, size)):
        yield piece


FieldValue = str | int | float
MOST_NANOSECONDS = 2**63 - 1
VERSION = 1
"""Version of the format of an index. Older code refuses a newer one."""


class Stamp(NamedTuple):
    """Size in bytes of a picture and when the file that holds it was changed: equal stamps, equal pictures."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Header:
    """Which model an index is of.

    `model`: the name or folder that it is loaded by; `fingerprint`: of the files of its checkpoint.
    """

    model: str
    fingerprint: str
    embed_dim: int
    version: int = VERSION


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A picture of an index, without its embedding.

    `name`: its absolute path, or where it lies in a shard or table; `root`: the argument that it was found by; `file`,
    `offset`: where its bytes lie, `offset` None if they are all of the file; `digest`: of its bytes; `phash`: see
    `grr_coca.search.phash`; `fields`: the columns of its table.
    """

    name: str
    root: str
    file: str
    offset: int | None
    stamp: Stamp
    digest: str
    phash: int
    width: int
    height: int
    caption: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of the file or member, without folders and suffix."""
        return Path(self._inner).stem

    @property
    def folder(self) -> str:
        """The name of the folder that the picture lies in; of a shard without folders, the shard's without suffix."""
        inner = Path(self._inner).parent.name
        return inner or Path(self.file).stem

    @property
    def date(self) -> str:
        """When the file was changed, in UTC, such as `2026-03-01T12:00:00`: text that sorts by time."""
        return datetime.fromtimestamp(self.stamp.mtime_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")

    @property
    def draw(self) -> int:
        """A number that depends on the name alone: the smallest ones are a random sample of the pictures."""
        return name_id(self.name)

    @property
    def span(self) -> Span:
        """Where the bytes lie."""
        return Span(Path(self.file), self.offset, None if self.offset is None else self.stamp.size)

    @property
    def is_there(self) -> bool:
        """Whether the file that holds the picture is still where it was."""
        return bool(self.file) and Path(self.file).exists()

    @property
    def _inner(self) -> str:
        """The path within a shard, or the path of the file."""
        return member_of_name(self.name, self.file) if self.offset is not None else self.file or self.name


class PicturePlace(NamedTuple):
    """The name of a picture, and where it lies: the shard that holds it; without a shard, its name again."""

    name: str
    file: str

    @classmethod
    def of(cls, name: str, file: str, offset: int | None) -> "PicturePlace":
        """The place of a picture by the values of its `Entry`."""
        return cls(name, name if offset is None else file)

    @classmethod
    def of_name(cls, name: str) -> "PicturePlace":
        """The place of a picture that could not be read, of which nothing but the name is kept."""
        return cls(name, shard_of_name(name) or name)


class Failure(NamedTuple):
    """A picture that could not be read. `stamp` is None where the file is gone, or may be read at another time."""

    name: str
    root: str
    stamp: Stamp | None
    message: str


def stamp_of(file: ImageFile) -> Stamp | None:
    """The stamp of a picture; None where it is not there, or lies in no file."""
    place = file.span.file if file.span is not None else Path(file.name)
    try:
        status = place.stat()
    except (OSError, ValueError):
        return None
    size = file.span.size if file.span is not None and file.span.size is not None else status.st_size
    # A time of the year 2300 has more bits than a column of a database.
    return Stamp(size, max(-MOST_NANOSECONDS, min(status.st_mtime_ns, MOST_NANOSECONDS)))


def digest_of(content: bytes) -> str:
    """A digest of the bytes of a picture. Equal digests mean equal bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def name_id(name: str) -> int:
    """A 63-bit number of a name, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(os_bytes(name), digest_size=8).digest()) >> 1


def os_bytes(name: str) -> bytes:
    """A name as bytes, those of a file name that is not UTF-8 among them."""
    return name.encode("utf-8", "surrogateescape")


Kind = Literal["text", "number"]

OWN_FIELDS: dict[str, Kind] = {
    "path": "text",
    "folder": "text",
    "title": "text",
    "caption": "text",
    "date": "text",
    "size": "number",
    "width": "number",
    "height": "number",
}
"""`path`: absolute, or where the picture lies in a shard or table; `folder`: the name of the folder that holds it;
`title`: its file name without the suffix; `date`: when it was changed, as `2026-03-01T12:00:00` in UTC; `size`: in
bytes; `width`, `height`: in pixels, as it is shown."""

FILTER_WORDS = frozenset({"and", "or", "not", "in", "like"})
"""Words of the language, which no field may be called."""


_RESERVED = frozenset({"id", "name", "root", "file", "offset", "mtime_ns", "digest", "phash", "draw", "vector"})
"""Names that the stores use themselves."""


def plain_fields(fields: Mapping[str, object]) -> dict[str, FieldValue]:
    """The columns of a table as fields: texts and numbers. A cell that is a number becomes one, so that it compares.

    Lists become text with commas; empty cells and whatever else are left out. Names are in lower case, with `_` for all
    but digits and the letters a to z; one without such a letter keeps its own. A name that a filter cannot write, or
    that means something else there, gets `table_` before it.

    Raises:
        UserError: two columns get the same name.
    """
    plain: dict[str, FieldValue] = {}
    for column, cell in fields.items():
        value = _plain_value(cell)
        name = _field_name(str(column))
        if value is None:
            continue
        if name in plain:
            raise UserError(f"two columns of a table are called '{name}', but for case and marks; rename one of them")
        plain[name] = value
    return plain


def _field_name(column: str) -> str:
    written = column.strip().lower()
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in written)
    if not any(c.isalpha() for c in name):  # in another script, where `_` for each letter would tell nothing apart
        name = "".join(c if c.isalnum() else "_" for c in written) or "column"
    return f"table_{name}" if name[0].isdigit() or name in {*OWN_FIELDS, *FILTER_WORDS, *_RESERVED} else name


def _plain_value(cell: object) -> FieldValue | None:
    if isinstance(cell, bool):
        return int(cell)
    if isinstance(cell, int | float):
        return cell if abs(cell) < 2**63 else None  # false for what is no number too
    if isinstance(cell, list | tuple):
        return ", ".join(map(str, cell)) or None
    return _number(cell) if isinstance(cell, str) and cell else None


def _number(text: str) -> FieldValue:
    """The number that a text is, if writing the number gives the text again: `007` and `1e5` stay as they are."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text and abs(number) < 2**63:
            return number
    return text
