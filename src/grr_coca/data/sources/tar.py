"""Scan tar shards. The offsets and sizes of all images and captions are found in one pass over the headers."""

import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.data.images import MAX_BYTES
from grr_coca.data.sources.base import MAX_TEXT, Cause
from grr_coca.data.walk import has_image_suffix, is_hidden

ROW_DTYPE = np.dtype(
    [(f"{part}_{what}", "<u4") for part in ("image", "text", "json") for what in ("block", "size")]
    + [("key_end", "<u4"), ("cause", "u1")]
)
"""Data type of a pair in an index. For each part, it has the number of the first block of 512 bytes, and the size in
bytes (0 if the part is missing). `key_end` is the end of the pair's key in the string of all keys. `cause` is 0 for a
valid pair; for a bad pair, it is 1 plus the index in `CAUSES`."""

CAUSES = tuple(Cause)

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class ShardIndex:
    """Offsets and sizes of the pairs in a shard. `is_whole` is false if the file is truncated.

    The index of a remote shard also contains the CRC-32 checksum of each image (`image_sums`), and the content of every
    `KEY.json` and `KEY.txt` that is used (`texts`), so that captions can be read without the network. The index of a
    Parquet table also contains the `footer` of the table.
    """

    rows: np.ndarray
    keys: bytes | memoryview
    is_whole: bool
    image_sums: np.ndarray | None = None
    texts: bytes | memoryview = b""
    _: KW_ONLY
    footer: bytes | memoryview = b""

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, row: int) -> str:
        """Return the key of a pair, which is the part of the name that all members of the pair have in common."""
        start = int(self.rows[row - 1]["key_end"]) if row else 0
        return bytes(self.keys[start : int(self.rows[row]["key_end"])]).decode("utf-8", "surrogateescape")

    def text(self, row: int, part: str) -> bytes:
        """Return the content of `KEY.json` or `KEY.txt` (part `text`) of a valid pair, from `texts`."""
        start = int(self._text_ends[row - 1]) if row else 0
        if part == "text":
            start += int(self.rows[row]["json_size"])
        return bytes(self.texts[start : start + int(self.rows[row][f"{part}_size"])])

    @cached_property
    def _text_ends(self) -> np.ndarray:
        return np.cumsum(stored_text_sizes(self.rows).astype(np.int64))


def stored_text_sizes(rows: np.ndarray) -> np.ndarray:
    """Return the number of bytes that each pair has in `ShardIndex.texts`, for JSON and text together.

    This number is 0 for a bad pair, and for a pair with too many bytes of JSON and text.
    """
    sizes = rows["json_size"].astype(np.int64) + rows["text_size"]
    return np.where((rows["cause"] == 0) & (sizes <= 2 * MAX_TEXT), sizes, 0)


def with_content(index: ShardIndex, file: BinaryIO) -> ShardIndex:
    """Return an index to which the checksums of images and the texts of captions are added.

    They are read from `file`, which is the shard.
    """
    sums, texts = np.zeros(len(index), "<u4"), []
    kept = stored_text_sizes(index.rows)
    for row, entry in enumerate(index.rows):
        if entry["cause"]:
            continue
        parts = {}
        for part in ("image", "json", "text"):
            file.seek(int(entry[f"{part}_block"]) * tarfile.BLOCKSIZE)
            parts[part] = file.read(int(entry[f"{part}_size"])) if part == "image" or kept[row] else b""
        sums[row] = zlib.crc32(parts["image"])
        texts.append(parts["json"] + parts["text"])
    return replace(index, image_sums=sums, texts=b"".join(texts))


def scan_shard(path: Path) -> ShardIndex:
    """Create the index of a shard from its headers and the content of its first `KEY.json`.

    Bad pairs are included with the cause of their error, such as a missing part or a repeated key.

    Raises:
        UserError: If the file is not an uncompressed tar file, or has no image.
    """
    entries: dict[str, _Entry] = {}
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            size = path.stat().st_size
            for member in _members(tar):
                _add(entries, member, size)
            is_whole = block_at_end(tar) == bytes(tarfile.BLOCKSIZE)
            if not _has_several_captions(entries, file):
                for entry in entries.values():
                    entry.parts.pop("json", None)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{path}: not a readable, uncompressed tar file ({error}); decompress it, or copy it again"
        ) from error
    if not any("image" in entry.parts for entry in entries.values()):
        raise UserError(f"{path}: no pairs; expected members KEY.jpg (or .png, .webp …) and KEY.txt")
    return _pack(entries, is_whole)


def next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Return the next member, or None at the end. Unlike `TarFile.next`, this does not keep all members in memory.

    The file may consist of several concatenated tar files, such as the output of `cat a.tar b.tar`.

    Raises:
        tarfile.ReadError: If the previous member is truncated.
        tarfile.HeaderError: If the header is invalid. This includes negative sizes, with which the same members would
            be repeated forever, and sparse files, whose bytes are not an image. Extensions of tar allow both.
    """
    try:
        member = tar.next()
        if member is None and _pass_end_mark(tar):
            member = tar.next()
    except ValueError as error:
        raise tarfile.HeaderError(f"a header cannot be read ({error})") from error
    tar.members = []  # type: ignore[attr-defined]
    if member is not None and (member.size < 0 or member.issparse()):
        raise tarfile.HeaderError(f"the header of {member.name} is invalid")
    return member


def _pass_end_mark(tar: tarfile.TarFile) -> bool:
    """Move to the first block after the zeros that end a tar file, and return True.

    Return False if nothing follows the zeros, or if the zeros are missing.
    """
    file, offset = cast(BinaryIO, tar.fileobj), tar.offset
    file.seek(offset)
    while chunk := file.read(_CHUNK_BYTES):
        num_zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if num_zeros < len(chunk):
            start = offset + num_zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            has_passed, tar.offset = start > tar.offset, start
            return has_passed
        offset += len(chunk)
    return False


def block_at_end(tar: tarfile.TarFile) -> bytes:
    """Return the block after the last member. It consists of zeros unless the file is truncated or corrupt."""
    file = cast(BinaryIO, tar.fileobj)
    file.seek(tar.offset)
    return file.read(tarfile.BLOCKSIZE)


class _Span(NamedTuple):
    block: int = 0
    size: int = 0


@dataclass
class _Entry:
    parts: dict[str, _Span] = field(default_factory=dict)
    repeats: Counter[str] = field(default_factory=Counter)
    is_cut: bool = False

    @property
    def cause(self) -> Cause | None:
        if self.is_cut:
            return Cause.CUT_OFF
        if "image" not in self.parts:
            return Cause.NO_IMAGE
        if self.parts["image"].size > MAX_BYTES:
            return Cause.TOO_LARGE
        if not self.parts["image"].size:
            return Cause.EMPTY_FILE
        return None if "text" in self.parts else Cause.NO_CAPTION


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular, visible files in a tar file, up to its end or to the point at which it is truncated."""
    while True:
        try:
            member = next_member(tar)
        except tarfile.ReadError:
            return  # the previous member is truncated
        if member is None:
            return
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not is_hidden(member.name):
            yield member


def _add(entries: dict[str, _Entry], member: tarfile.TarInfo, file_size: int) -> None:
    key, _, suffix = member.name.rpartition(".")
    part = "image" if has_image_suffix(member.name) else {"txt": "text", "json": "json"}.get(suffix.lower())
    if part is None:
        return
    entry = entries.setdefault(key, _Entry())
    if part in entry.parts:
        entry.repeats[part] += 1
        return
    entry.parts[part] = _Span(member.offset_data // tarfile.BLOCKSIZE, min(member.size, 2**32 - 1))
    entry.is_cut |= member.offset_data + member.size > file_size


def _has_several_captions(entries: dict[str, _Entry], file: BinaryIO) -> bool:
    """Return whether the first `KEY.json` contains a list `captions`, as then all of them do.

    `grr-coca data convert` writes such a list, but img2dataset does not.
    """
    span = next((entry.parts["json"] for entry in entries.values() if "json" in entry.parts), None)
    if span is None:
        return False
    file.seek(span.block * tarfile.BLOCKSIZE)
    try:
        content = json.loads(file.read(span.size))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("captions"), list)


def _leaves_root(key: str) -> bool:
    return key.startswith("/") or ".." in key.split("/")


def _pack(entries: dict[str, _Entry], is_whole: bool) -> ShardIndex:
    rows, keys, end = [], [], 0

    def append(key: str, parts: dict[str, _Span], cause: Cause | None) -> None:
        nonlocal end
        keys.append(key.encode("utf-8", "surrogateescape"))
        end += len(keys[-1])
        spans = [number for part in ("image", "text", "json") for number in parts.get(part, _Span())]
        rows.append((*spans, end, 0 if cause is None else 1 + CAUSES.index(cause)))

    for key, entry in entries.items():
        if "image" in entry.parts or "text" in entry.parts:
            append(key, entry.parts, Cause.FORBIDDEN_PATH if _leaves_root(key) else entry.cause)
        for _ in range(max(entry.repeats["image"], entry.repeats["text"])):
            append(key, {}, Cause.DUPLICATE_KEY)
    return ShardIndex(np.array(rows, dtype=ROW_DTYPE), b"".join(keys), is_whole)
