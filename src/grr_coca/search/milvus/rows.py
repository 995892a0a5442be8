"""Pictures as rows of a collection, and back.

Texts as Milvus takes them: valid UTF-8, from which a file name comes back as it was.

Python turns the bytes of a file name that are not UTF-8 into lone surrogates, U+DC80 to U+DCFF. They are moved to a
private plane of Unicode, which no name uses.
"""

from typing import Any

import numpy as np

from grr_coca.search.entry import Entry, PicturePlace, Stamp

PRIVATE = 0x100000
MOVED = {code: code + PRIVATE for code in range(0xDC80, 0xDD00)}
BACK = {moved: code for code, moved in MOVED.items()}


def as_utf8(text: str) -> str:
    """A text to send. Any other lone surrogate, which no file name has, is written as an escape."""
    if text.isascii():
        return text
    return text.translate(MOVED).encode("utf-8", "backslashreplace").decode()


def from_utf8(text: str) -> str:
    """A text that came, as it was before `as_utf8`."""
    return text if text.isascii() else text.translate(BACK)


TEXTS = {
    "name": 8192,
    "title": 4096,
    "root": 8192,
    "file": 8192,
    "date": 32,
    "folder": 4096,
    "digest": 64,
    "caption": 8192,
}
"""Columns of text, and the most characters of each. Milvus counts bytes, of which a character takes up to four."""
NUMBERS = ("offset", "size", "mtime_ns", "phash", "width", "height")
COLUMNS = {"id", *TEXTS, *NUMBERS, "fields", "kinds", "vector"}
READ = ["name", "root", "file", "digest", "caption", *NUMBERS, "fields"]
NO_OFFSET = -1


def to_record(entry: Entry, vector: np.ndarray) -> dict[str, Any]:
    """The row of a picture. Its id is computed from its name, so no name is there twice."""
    texts = {name: as_utf8(getattr(entry, name))[:length] for name, length in TEXTS.items()}
    kinds = {name: "text" if isinstance(value, str) else "number" for name, value in entry.fields.items()}
    return {
        **texts,
        "id": entry.draw,
        "offset": NO_OFFSET if entry.offset is None else entry.offset,
        "size": entry.stamp.size,
        "mtime_ns": entry.stamp.mtime_ns,
        "phash": entry.phash,
        "width": entry.width,
        "height": entry.height,
        "fields": dict(entry.fields),
        "kinds": kinds,
        "vector": as_kept(vector).tolist(),
    }


def from_record(record: dict[str, Any]) -> Entry:
    """The picture of a row."""
    return Entry(
        name=from_utf8(record["name"]),
        root=from_utf8(record["root"]),
        file=from_utf8(record["file"]),
        offset=_offset(record),
        stamp=Stamp(record["size"], record["mtime_ns"]),
        digest=record["digest"],
        phash=record["phash"],
        width=record["width"],
        height=record["height"],
        caption=record["caption"],
        fields=dict(record["fields"] or {}),
    )


def place_of_record(record: dict[str, Any]) -> PicturePlace:
    """The name and place of a row's picture."""
    return PicturePlace.of(from_utf8(record["name"]), from_utf8(record["file"]), _offset(record))


def _offset(record: dict[str, Any]) -> int | None:
    return None if record["offset"] == NO_OFFSET else record["offset"]


def as_kept(vector: np.ndarray) -> np.ndarray:
    """A vector in 32 bits, rounded to half precision, which is what the embedded store keeps."""
    return np.asarray(vector, np.float16).astype(np.float32)
