"""Content of an index: a header, and for each image an entry with its location, caption, size and fields."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import ByteRange, ImageFile, member_of_name, shard_of_name
from grr_coca.data.sources.base import PACK_SUFFIX
from grr_coca.infer.calibration import UNKNOWN, CaptionConfidence
from grr_coca_search.fields import MULTI_VALUED_FIELDS, OWN_FIELDS, PHOTO_FIELDS, READER_VERSION, FieldValue

MAX_WIDTH = 2**16
"""Maximum width of an embedding."""
VERSION = 1
"""Version of the index format. Older code rejects newer versions."""


@dataclass(frozen=True)
class Header:
    """Header of an index, which identifies its model.

    Attributes:
        model: Name or folder of the model.
        fingerprint: Fingerprint of the checkpoint files.
        embed_dim: Width of the embeddings.
        version: Version of the index format.
    """

    model: str
    fingerprint: str
    embed_dim: int
    version: int = VERSION


def require_supported(location: object, version: int) -> None:
    """Check that this version of GRR-CoCa can read an index.

    Raises:
        UserError: If a newer version wrote the index.
    """
    if version > VERSION:
        raise UserError(
            f"{location}: written by a newer grr-coca (format {version}; this version supports {VERSION}); "
            "update grr-coca"
        )


class Stamp(NamedTuple):
    """Size of an image in bytes, and modification time of its file in nanoseconds.

    An image whose stamp is the same as at the last update is not read again, unless its table row or XMP file has
    changed.
    """

    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Photo:
    """Metadata that a camera or user added to an image; see `grr_coca_search.describe.photo_of`.

    Attributes:
        fields: Known values of `PHOTO_FIELDS`.
        keywords: Keywords of the image.
        sidecars: Number that changes with the XMP files next to the image; see `sidecar_state`.
    """

    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    keywords: tuple[str, ...] = ()
    sidecars: int = READER_VERSION

    @property
    def words(self) -> tuple[str, ...]:
        """Title (if there is one) and keywords, which are the texts that users wrote."""
        return (*([str(self.fields["headline"])] if "headline" in self.fields else []), *self.keywords)

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as a dictionary for JSON, whose keys are the names of the fields in stores."""
        known = {PHOTO_FIELDS[name]: value for name, value in self.fields.items()}
        return {**known, **({"keywords": self.keywords} if self.keywords else {}), "sidecars": self.sidecars}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Restore metadata from the dictionary that `to_dict` returned. Unknown keys of newer versions are ignored."""
        known = {name: values[key] for name, key in PHOTO_FIELDS.items() if key in values}
        return cls(
            fields=known, keywords=tuple(values.get("keywords", ())), sidecars=values.get("sidecars", READER_VERSION)
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Image in an index, without its embedding.

    Attributes:
        name: Absolute path, or location in a shard or table.
        root: Argument through which the image was found.
        file, offset: File that contains the bytes of the image, and their position in it. `offset` is None if the
            bytes are the entire file. `file` is empty if no file contains the bytes unchanged.
        stamp: Size and modification time when the image was indexed.
        digest: Digest of the bytes.
        phash: Perceptual hash; see `perceptual_hash`.
        pixel_signature: Pixel signature; see `compute_pixel_signature`. Empty if unknown.
        width, height: Size in pixels.
        fields: Values of the image's columns, if it was found through a table.
        photo: Metadata from cameras and users. None if it has not been read yet.
        caption_confidence: The model's confidence in the caption.
        tags: Words that the model assigns to the image.
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
    photo: Photo | None = None
    caption_confidence: CaptionConfidence = UNKNOWN
    tags: tuple[str, ...] = ()
    pixel_signature: bytes = b""

    @property
    def title(self) -> str:
        """Name of the image file or shard member, without its folders and suffix."""
        return self._inner.stem

    @property
    def folder(self) -> str:
        """Name of the folder that directly contains the image, without the path of that folder.

        For an image at the top of a shard, this is the name of the shard without its suffix.
        """
        return self._inner.parent.name or Path(self.file).stem

    @property
    def date(self) -> str:
        """Modification time of the file in UTC, such as `2026-03-01T12:00:00`.

        The alphabetical order of these texts is chronological.
        """
        return datetime.fromtimestamp(self.stamp.mtime_ns // 10**9, UTC).isoformat()[:19]

    @property
    def name_hash(self) -> int:
        """Hash of the name, from 0 to 2⁶³ - 1. The images with the smallest hashes form a random sample."""
        return name_id(self.name)

    @property
    def span(self) -> ByteRange:
        """Location of the image's bytes in a file. It is valid only if `file` is not empty."""
        return ByteRange(Path(self.file), self.offset, None if self.offset is None else self.stamp.size)

    @property
    def all_fields(self) -> dict[str, FieldValue]:
        """Fields of the image from the model, the image file and its table. The table takes precedence over the file,
        and the file over the model.

        If a field has several values, they are joined to one text, separated by commas.
        """
        found = confidence_fields(self.caption_confidence)
        if self.photo is not None:
            found |= self.photo.fields
        return {
            **found,
            **{name: ", ".join(values) for name, values in self._multi_valued_fields.items()},
            **self.fields,
        }

    @property
    def shown_fields(self) -> "dict[str, FieldValue | list[str]]":
        """Fields as in `all_fields`, for display on the page: a field that may have several values is a list."""
        return {**self.all_fields, **{name: list(values) for name, values in self._multi_valued_fields.items()}}

    @property
    def _multi_valued_fields(self) -> "dict[str, tuple[str, ...]]":
        """Multi-valued fields of the image, except those that are replaced by a column of the image's table."""
        lists = {"keywords": () if self.photo is None else self.photo.keywords, "tags": self.tags}
        return {name: values for name, values in lists.items() if values and name not in self.fields}

    def values_of(self, field: str) -> "tuple[FieldValue, ...]":
        """Return the values of a field, which may be in `OWN_FIELDS` or in `all_fields`.

        The result is empty if the image does not have the field. It has more than one value only for fields in
        `MULTI_VALUED_FIELDS`.
        """
        if field in MULTI_VALUED_FIELDS and field not in self.fields:
            return self._multi_valued_fields.get(field, ())
        if field in OWN_FIELDS:
            owned: dict[str, FieldValue] = {"path": self.name, "size": self.stamp.size}
            return (owned[field] if field in owned else getattr(self, field),)
        found = self.all_fields.get(field)
        return () if found is None else (found,)

    @property
    def user_texts(self) -> tuple[str, ...]:
        """Texts that name the image: its file name, title and keywords, and the aliases, keywords and tags in its table
        row.
        """
        columns = (str(self.fields[name]) for name in ("aliases", "keywords", "tags") if name in self.fields)
        return (self.title, *(self.photo.words if self.photo else ()), *columns)

    @property
    def is_vector(self) -> bool:
        """Whether the image is a vector drawing: an SVG file, or an icon of an icon set."""
        return self.name.lower().endswith(".svg") or "icon" in self.fields

    @property
    def sets(self) -> tuple[str, ...]:
        """Prefixes that a query such as `lucide:home` may use for the image, in lower case.

        They are the image's folder, and the prefix in its name (empty if the name has no prefix).
        """
        return (self.folder.lower(), self.title.rpartition(":")[0].lower())

    @property
    def is_there(self) -> bool:
        """Whether the file that contains the image still exists. Each access checks the disk."""
        return bool(self.file) and os.path.exists(self.file)  # noqa: PTH110 (`Path.exists` takes three times as long)

    @cached_property
    def _inner(self) -> PurePath:
        """Path of the image within its shard, or the path of its file if it is not in a shard."""
        if self.file.endswith(PACK_SUFFIX):
            return PurePath(self.name.rpartition(": ")[2])
        return PurePath(member_of_name(self.name, self.file) if self.offset is not None else self.file or self.name)


class ImageLocation(NamedTuple):
    """Name of an image, and path of the file that contains the image: a shard, or the image file itself."""

    name: str
    file: str

    @classmethod
    def of(cls, name: str, file: str, offset: int | None) -> "ImageLocation":
        """Return the location of an image from the values `name`, `file` and `offset` of its `Entry`."""
        return cls(name, name if offset is None else file)

    @classmethod
    def of_name(cls, name: str) -> "ImageLocation":
        """Return the location of an image that could not be read, from its name."""
        return cls(name, shard_of_name(name) or name)


class Failure(NamedTuple):
    """Image that could not be read.

    Attributes:
        name: Absolute path, or location in a shard or table.
        root: Argument through which the image was found.
        stamp: Size and modification time. None if the file no longer exists, or if the next update must try again to
            read the image.
        message: Reason why the image could not be read.
    """

    name: str
    root: str
    stamp: Stamp | None
    message: str


_MAX_NANOSECONDS = 2**63 - 1


def stamp_of(file: ImageFile) -> Stamp | None:
    """Return the stamp of an image. Return None if its file does not exist, or if its bytes are not from a file."""
    part = file.part
    try:
        status = os.stat(file.name if part is None else part.file)  # noqa: PTH116 (takes a third of pathlib's time)
    except (OSError, ValueError):
        return None
    size = part.size if part is not None and part.size is not None else status.st_size
    # A time after the year 2262 does not fit into a 64-bit column of the database.
    return Stamp(size, max(-_MAX_NANOSECONDS, min(status.st_mtime_ns, _MAX_NANOSECONDS)))


def digest_of(content: bytes) -> str:
    """Return the BLAKE2b digest of the bytes of an image, 32 hexadecimal digits. Equal digests imply equal bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def name_id(name: str) -> int:
    """Return a 63-bit hash of a name, which is the same on all machines."""
    return int.from_bytes(hashlib.blake2b(os_bytes(name), digest_size=8).digest()) >> 1


def os_bytes(name: str) -> bytes:
    """Return the bytes of a file name, from which Python decoded `name` with `surrogateescape`."""
    return name.encode("utf-8", "surrogateescape")


Item = TypeVar("Item")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of length `size`. The last list may be shorter."""
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


# --- Fields of the model


def confidence_fields(caption: CaptionConfidence) -> dict[str, FieldValue]:
    """Convert the confidence of a caption to fields. Unknown values are omitted."""
    found: dict[str, FieldValue] = {}
    if caption.confidence is not None:
        found["confidence"] = round(caption.confidence, 4)
    if caption.unfamiliar is not None:
        found["unfamiliar"] = "yes" if caption.unfamiliar else "no"
    return found


def confidence_from_fields(fields: Mapping[str, FieldValue]) -> CaptionConfidence:
    """Restore the confidence of a caption from the fields that `confidence_fields` returned."""
    confidence, unfamiliar = fields.get("confidence"), fields.get("unfamiliar")
    return CaptionConfidence(
        None if confidence is None else float(confidence), None if unfamiliar is None else unfamiliar == "yes"
    )


# --- Columns of tables

FILTER_WORDS = frozenset({"and", "or", "not", "in", "like"})
"""Keywords of the filter language, which cannot be names of fields."""

_RESERVED = frozenset({"id", "name", "root", "file", "offset", "mtime_ns", "digest", "phash", "draw", "vector"})
"""Names that the stores use internally."""


def plain_fields(fields: Mapping[str, object]) -> dict[str, FieldValue]:
    """Convert the cells of a table row to fields whose values are texts or numbers.

    Numeric texts and booleans become numbers, so that they can be compared. A list becomes a text in which its items
    are separated by commas. Empty cells, values of other types, and numbers that are not finite or whose absolute value
    is at least 2⁶³ are excluded. Names are converted to lower case, and every
    character except digits and the letters a to z becomes `_`. A name without any of these letters, such as `цена`,
    keeps its own letters. A name that is invalid in filters, or that already has a meaning, gets the prefix `table_`.

    Raises:
        UserError: If two columns get the same name.
    """
    plain: dict[str, FieldValue] = {}
    for column, cell in fields.items():
        value = _plain_value(cell)
        name = _field_name(str(column))
        if value is None:
            continue
        if name in plain:
            raise UserError(
                f"two columns of a table are both named '{name}' if case and punctuation are ignored; "
                "rename one of them"
            )
        plain[name] = value
    return plain


def _field_name(column: str) -> str:
    written = column.strip().lower()
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in written)
    # The name is in another script. If its letters became `_`, all such names of the same length would be equal.
    if not any(c.isalpha() for c in name):
        name = "".join(c if c.isalnum() else "_" for c in written) or "column"
    return f"table_{name}" if name[0].isdigit() or name in {*OWN_FIELDS, *FILTER_WORDS, *_RESERVED} else name


def _plain_value(cell: object) -> FieldValue | None:
    if isinstance(cell, bool):
        return int(cell)
    if isinstance(cell, int | float):
        return cell if abs(cell) < 2**63 else None  # the comparison is also false for NaN
    if isinstance(cell, list | tuple):
        return ", ".join(map(str, cell)) or None
    return _number_or_text(cell) if isinstance(cell, str) and cell else None


def _number_or_text(text: str) -> FieldValue:
    """Return the number that a text represents, or the text itself if formatting the number yields another text.

    Therefore, `007` and `1e5` remain texts.
    """
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text and abs(number) < 2**63:
            return number
    return text


# --- Comparison of near-duplicates

MAX_BITS = 6
"""Maximum number of the 64 hash bits in which near-duplicates may differ."""
MIN_COSINE = 0.95
"""Minimum cosine similarity between the embeddings of near-duplicates."""
MAX_LEVELS = 2
"""Maximum difference between the small copies of near-duplicates in any channel of any pixel, on a scale of 16 levels.
In a measurement, 300 copies differed from their originals by at most 1 level, and the two most similar of 1,000
different Tabler icons differed by 3 levels."""
_SIGNATURE_BYTES = 16 * 16 * 3 // 2  # see `compute_pixel_signature`


def unpack_signatures(entries: Sequence[Entry]) -> np.ndarray:
    """Return the small copies of N images as levels from 0 to 15, N 768.

    If the copy of an image is unknown, all its levels are -1.
    """
    signatures = np.full((len(entries), _SIGNATURE_BYTES * 2), -1, np.int8)
    for row, entry in zip(signatures, entries, strict=True):
        if len(entry.pixel_signature) == _SIGNATURE_BYTES:
            packed = np.frombuffer(entry.pixel_signature, np.uint8)
            row[0::2], row[1::2] = packed >> 4, packed & 15
    return signatures


def signatures_match(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether small copies from `unpack_signatures`, … 768, are nearly equal in every pixel.

    An unknown copy is not equal to any copy.
    """
    differences = np.abs(first - second).max(axis=-1)
    return (differences <= MAX_LEVELS) & (first[..., 0] >= 0) & (second[..., 0] >= 0)


_BITS_OF_BYTE = np.array([byte.bit_count() for byte in range(256)], np.uint8)


def num_differing_bits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number of bits in which the hashes in two int64 arrays differ.

    The arrays are broadcast against each other.
    """
    different = np.ascontiguousarray(np.bitwise_xor(first, second))
    return _BITS_OF_BYTE[different.view(np.uint8).reshape(*different.shape, 8)].sum(axis=-1, dtype=np.int64)
