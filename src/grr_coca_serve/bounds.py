"""Limits on the JSON in requests, which are checked before the JSON is parsed.

A body of a few megabytes can contain a million values. Pydantic would validate each value and report each error, which
would take minutes and gigabytes of memory.
"""

import json
import re

from grr_coca_serve.request_error import RequestError

MAX_PARTS = 50_000
"""Maximum number of parts of the JSON in a body. Parts are texts, commas, brackets, and quotation marks within texts. A
conversation of 1,000 messages with images has 20,000 parts."""
MAX_DEPTH = 50
"""Maximum nesting depth of lists and objects."""

_NEXT_PART = re.compile(rb'[^"\[\]{},]*+(["\[\]{},])')  # possessive: each byte is inspected only once


def require_bounded(body: bytes) -> None:
    """Check the number of parts and the nesting depth of JSON, but not whether it is valid.

    Raises:
        RequestError: With status 413 if the JSON has too many parts, and with status 422 if it is nested too deeply or
            is not encoded in UTF-8.
    """
    if not json.detect_encoding(body).startswith("utf-8"):
        raise RequestError(422, "the body must be encoded in UTF-8")
    count, depth, place = 0, 0, 0
    while part := _NEXT_PART.match(body, place):
        place, kind = part.end(), part[1]
        count += 1
        if kind == b'"':
            place, num_quotes = _end_of_text(body, place, MAX_PARTS)
            count += num_quotes
        depth += (kind in b"[{") - (kind in b"]}")
        if count > MAX_PARTS:
            raise RequestError(
                413,
                f"the JSON has too many parts: more than {MAX_PARTS:,} texts, commas and brackets; send "
                "less per request",
            )
        if depth > MAX_DEPTH:
            raise RequestError(422, f"the JSON is nested too deeply: more than {MAX_DEPTH} levels of lists and objects")


def _end_of_text(body: bytes, start: int, max_quotes: int) -> tuple[int, int]:
    """Return the position after a text, and the number of quotation marks within the text.

    Counting stops when the text has more than `max_quotes` quotation marks.
    """
    for count in range(max_quotes + 1):
        end = body.find(b'"', start)
        if end < 0:
            return len(body), count
        before = body[start:end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:  # otherwise, the quotation mark is escaped
            return end + 1, count
        start = end + 1
    return start, max_quotes + 1
