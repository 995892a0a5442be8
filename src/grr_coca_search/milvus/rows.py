"""Convert images to rows, texts to valid UTF-8, and filters to expressions of Milvus. Convert rows and texts back."""

import base64
import json
import math
from typing import Any

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca_search.entry import Entry, Photo, Stamp, confidence_fields, confidence_from_fields
from grr_coca_search.fields import COLUMNS, FIELDS, MULTI_VALUED_FIELDS, FieldValue
from grr_coca_search.filters import And, Comparison, Filter, Like, Not, OneOf, Or

TEXT_COLUMNS = {
    "name": 8192,
    "title": 4096,
    "root": 8192,
    "file": 8192,
    "date": 32,
    "folder": 4096,
    "digest": 64,
    "caption": 8192,
}
"""Text columns, with their maximum numbers of characters. Milvus limits the number of bytes; a character has up to four
bytes."""
NUMBER_COLUMNS = ("offset", "size", "mtime_ns", "phash", "width", "height")
ALL_COLUMNS = {"id", *TEXT_COLUMNS, *NUMBER_COLUMNS, "fields", "kinds", "vector"}
READ_COLUMNS = ["id", "name", "root", "file", "digest", "caption", *NUMBER_COLUMNS, "fields", "kinds"]
_NO_OFFSET = -1
_PHOTO = ""
"""Key, in the column `kinds`, of data from cameras, users and the model. It cannot be the name of a field. The part of
these data that can be filtered is also in the column `fields`. The list `columns` in these data names the fields that
come from users' tables.
"""


def to_record(entry: Entry, vector: np.ndarray) -> dict[str, Any]:
    """Convert an image to a row. Its id is a hash of its name, so a collection has only one row per name.

    Texts that are longer than their columns are truncated.
    """
    texts = {name: as_utf8(getattr(entry, name))[:length] for name, length in TEXT_COLUMNS.items()}
    fields = entry.all_fields
    kinds: dict[str, Any] = {name: "text" if isinstance(value, str) else "number" for name, value in fields.items()}
    certain = confidence_fields(entry.caption_confidence)
    if entry.photo is not None or certain or entry.tags or entry.pixel_signature:
        photo = None if entry.photo is None else entry.photo.to_dict()
        look = base64.b85encode(entry.pixel_signature).decode()
        tags = {"tags": list(entry.tags)} if entry.tags else {}
        model_fields = {"certainty": certain, **tags}
        kinds[_PHOTO] = {"photo": photo, **model_fields, "columns": list(entry.fields), "look": look}
    return {
        **texts,
        "id": entry.name_hash,
        "offset": _NO_OFFSET if entry.offset is None else entry.offset,
        "size": entry.stamp.size,
        "mtime_ns": entry.stamp.mtime_ns,
        "phash": entry.phash,
        "width": entry.width,
        "height": entry.height,
        "fields": fields,
        "kinds": kinds,
        "vector": round_to_half(vector).tolist(),
    }


def from_record(record: dict[str, Any]) -> Entry:
    """Convert a row to the entry of an image. This is the inverse of `to_record`, apart from truncated texts."""
    noted = (record["kinds"] or {}).get(_PHOTO)
    fields = record["fields"] or {}
    return Entry(
        name=from_utf8(record["name"]),
        root=from_utf8(record["root"]),
        file=from_utf8(record["file"]),
        offset=None if record["offset"] == _NO_OFFSET else record["offset"],
        stamp=Stamp(record["size"], record["mtime_ns"]),
        digest=record["digest"],
        phash=record["phash"],
        width=record["width"],
        height=record["height"],
        caption=record["caption"],
        fields=dict(fields) if noted is None else {name: fields[name] for name in noted["columns"]},
        photo=None if noted is None or noted["photo"] is None else Photo.from_dict(noted["photo"]),
        caption_confidence=confidence_from_fields((noted or {}).get("certainty", {})),
        tags=tuple((noted or {}).get("tags", ())),
        pixel_signature=base64.b85decode((noted or {}).get("look", "")),
    )


def round_to_half(vector: np.ndarray) -> np.ndarray:
    """Round a vector to half precision, as the store in a folder does, and return the result as float32."""
    return np.asarray(vector, np.float16).astype(np.float32)


# --- Texts

# Python converts bytes of a file name that are not UTF-8 to lone surrogates, U+DC80 to U+DCFF. Milvus accepts only
# valid UTF-8, so the surrogates are moved to a private plane of Unicode that no file name uses.
_TO_PRIVATE_USE = {code: code + 0x100000 for code in range(0xDC80, 0xDD00)}
_FROM_PRIVATE_USE = {moved: code for code, moved in _TO_PRIVATE_USE.items()}


def as_utf8(text: str) -> str:
    """Convert a text to valid UTF-8. `from_utf8` restores the text if it is a file name or was already valid."""
    if text.isascii():
        return text
    return text.translate(_TO_PRIVATE_USE).encode("utf-8", "backslashreplace").decode()


def from_utf8(text: str) -> str:
    """Restore a text that `as_utf8` has converted."""
    return text if text.isascii() else text.translate(_FROM_PRIVATE_USE)


# --- Filters as expressions

_LAST = "\U0010ffff"
"""Last code point of Unicode, which does not occur in texts."""
_NEVER, ALWAYS = "id < 0", "id >= 0"
"""Condition that no row meets, and condition that every row meets. Ids are never negative."""


def to_expression(tree: Filter) -> str:
    """Convert a filter to a Milvus expression.

    `json.dumps` quotes all texts, so that a text cannot break out of its quotes.

    Raises:
        UserError: If the filter tests a field in `MULTI_VALUED_FIELDS` with anything other than `=` and `in`.
    """
    if isinstance(tree, And | Or):
        word = " and " if isinstance(tree, And) else " or "
        return "(" + word.join(to_expression(part) for part in tree.parts) + ")"
    if isinstance(tree, Not):
        return f"(not {to_expression(tree.inner)})"
    if isinstance(tree, Comparison):
        return _comparison(tree.field, tree.operator, tree.value)
    if isinstance(tree, OneOf):
        if tree.field in COLUMNS and all(isinstance(value, str) for value in tree.values):
            return f"({COLUMNS[tree.field]} in [{', '.join(map(_literal, tree.values))}])"
        return "(" + " or ".join(_comparison(tree.field, "=", value) for value in tree.values) + ")"
    assert isinstance(tree, Like)
    if tree.field in MULTI_VALUED_FIELDS:
        raise _unsupported_test(tree.field)
    # Milvus's `like` is not used, because `_` would match any character, and not all versions can escape it.
    column = _column(tree.field)
    test = f"{column} >= {quoted(tree.prefix)} and {column} < {quoted(tree.prefix + _LAST)}"
    return f"({test})" if tree.field in COLUMNS else f"({_same_kind(tree.field, tree.prefix)} and {test})"


def quoted(text: str) -> str:
    """Convert a text to a literal in double quotes."""
    return json.dumps(as_utf8(text), ensure_ascii=False)


def _column(field: str) -> str:
    return COLUMNS[field] if field in COLUMNS else f"fields[{quoted(field)}]"


def _comparison(field: str, operator: str, value: FieldValue) -> str:
    if field in MULTI_VALUED_FIELDS:
        return _any_value_equals(field, operator, value)
    sign = {"=": "=="}.get(operator, operator)
    if field not in COLUMNS:
        return f"({_same_kind(field, value)} and {_column(field)} {sign} {_literal(value)})"
    if isinstance(value, float):
        return _integer_comparison(field, operator, value)
    return f"({_column(field)} {sign} {_literal(value)})"


def _any_value_equals(field: str, operator: str, value: FieldValue) -> str:
    """Return an expression that is true if at least one value of a field in `MULTI_VALUED_FIELDS` equals `value`.

    If a user's table has a column of the same name, its cell is the only value. Operators other than `=` raise a
    `UserError`.
    """
    if operator != "=":
        raise _unsupported_test(field)
    noted, text = f'kinds["{_PHOTO}"]', _literal(value)
    kept = f'{noted}["photo"]["{field}"]' if FIELDS[field].source == "file" else f'{noted}["{field}"]'
    is_no_column = f'(not json_contains({noted}["columns"], "{field}"))'
    is_one = f"({is_no_column} and json_contains({kept}, {text}))"
    return f'({_same_kind(field, value)} and (fields["{field}"] == {text} or {is_one}))'


def _unsupported_test(field: str) -> UserError:
    return UserError(
        f"where: on Milvus, '{field}' can only be compared with = and in; use these, or an index in a folder"
    )


def _same_kind(field: str, value: FieldValue) -> str:
    """Return an expression that is true if an image has a field whose value is of the same kind as `value` (text or
    number).
    """
    kind = "text" if isinstance(value, str) else "number"
    return f'kinds[{quoted(field)}] == "{kind}"'


def _literal(value: FieldValue) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def _integer_comparison(field: str, operator: str, value: float) -> str:
    """Convert a comparison of an integer field with a float to an equivalent comparison with an integer."""
    below, above = math.floor(value), math.ceil(value)
    if operator in ("=", "!=") and below != above:
        return f"({_NEVER if operator == '=' else ALWAYS})"
    bound = below if operator in (">", "<=", "=", "!=") else above
    return f"({_column(field)} {'==' if operator == '=' else operator} {bound})"
