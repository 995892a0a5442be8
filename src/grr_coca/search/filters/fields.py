"""Fields that every picture has, and how they compare."""

from typing import Literal

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

WORDS = frozenset({"and", "or", "not", "in", "like"})
"""Words of the language, which no field may be called."""


def is_own_field(name: str) -> bool:
    """Whether a column of a table needs another name, because this one is taken."""
    return name in OWN_FIELDS or name in WORDS or name in RESERVED


RESERVED = frozenset({"id", "name", "root", "file", "offset", "mtime_ns", "digest", "phash", "draw", "vector"})
"""Names that the stores use themselves."""
