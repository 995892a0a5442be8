"""How much JSON a request may hold: it is counted before anything is made of it.

A body of a few megabytes can hold a million values. Pydantic would look at each of them, and write a report of each
that is wrong, which takes minutes and gigabytes.
"""

import json
import re

from grr_coca_serve.refusal import Refusal

MAX_PARTS = 50_000
"""Commas, brackets and quotation marks within texts, and texts, of one body. A conversation of a thousand messages with
pictures has 20,000."""
MAX_DEPTH = 50
"""Lists and objects within each other."""

_NEXT_PART = re.compile(rb'[^"\[\]{},]*+(["\[\]{},])')  # possessive: whatever comes, each byte is looked at once


def require_bounded(body: bytes) -> None:
    """Raise an error for JSON with too many parts, or nested too deeply. Whether it is JSON at all is not looked at.

    Raises:
        Refusal: 413 for too many parts; 422 for too deep a nesting, and for encodings in which parts cannot be counted.
    """
    if not json.detect_encoding(body).startswith("utf-8"):
        raise Refusal(422, "the body is not UTF-8")
    count, depth, place = 0, 0, 0
    while part := _NEXT_PART.match(body, place):
        place, kind = part.end(), part[1]
        count += 1
        if kind == b'"':
            place, num_quotes = _end_of_text(body, place, MAX_PARTS)
            count += num_quotes
        depth += (kind in b"[{") - (kind in b"]}")
        if count > MAX_PARTS:
            raise Refusal(413, f"the JSON has too many parts: more than {MAX_PARTS:,} texts, commas and brackets")
        if depth > MAX_DEPTH:
            raise Refusal(422, f"the JSON is nested too deeply: more than {MAX_DEPTH} lists and objects in each other")


def _end_of_text(body: bytes, start: int, max_quotes: int) -> tuple[int, int]:
    """Where a text ends, and the number of quotation marks within it. At most `max_quotes` are looked for."""
    for count in range(max_quotes + 1):
        end = body.find(b'"', start)
        if end < 0:
            return len(body), count
        before = body[start:end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:  # otherwise, the mark is escaped
            return end + 1, count
        start = end + 1
    return start, max_quotes + 1
