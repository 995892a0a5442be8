"""Facets: by which fields the images of an index can be filtered, and which values these have."""

from collections import Counter
from collections.abc import Iterable

from grr_coca.search.entry import Entry, FieldValue

MAX_VALUES = 100
"""Most values of a field that are listed, the most frequent ones."""
_MAX_COUNTED = 10_000
"""A field with more values than these is not a facet, unless they are numbers."""
_OWN = ("folder", "date", "size", "width", "height")
_KINDS = {"folder": "text", "date": "date"}

Facet = dict[str, object]
"""`field`, and `kind`: `text` with `values` (value and number of images), `number` or `date` with `min` and `max`."""


def facets(entries: Iterable[Entry]) -> list[Facet]:
    """The facets of some images: their folder, date and size, and the columns of their tables.

    A text that differs in every image is left out, such as a title or an address.
    """
    counts: dict[str, Counter[FieldValue]] = {field: Counter() for field in _OWN}
    closed: set[str] = set()
    for entry in entries:
        own = {field: getattr(entry, field) for field in ("folder", "date", "width", "height")}
        for field, value in {**own, "size": entry.stamp.size, **entry.fields}.items():
            counted = counts.setdefault(field, Counter())
            if len(counted) < _MAX_COUNTED or value in counted or not isinstance(value, str) or field == "date":
                counted[value] += 1
            else:
                closed.add(field)
    found = (_facet(field, counted) for field, counted in counts.items() if counted and field not in closed)
    return [facet for facet in found if facet is not None]


def _facet(field: str, counted: Counter[FieldValue]) -> Facet | None:
    texts = [value for value in counted if isinstance(value, str)]
    kind = _KINDS.get(field, "text" if texts else "number")
    if kind != "text":
        values = texts if kind == "date" else [value for value in counted if not isinstance(value, str)]
        return {"field": field, "kind": kind, "min": min(values), "max": max(values)}  # type: ignore[type-var]
    if len(counted) > 1 and max(counted.values()) == 1:
        return None
    values_by_count = sorted(counted.items(), key=lambda item: (-item[1], str(item[0])))
    return {"field": field, "kind": kind, "values": [list(item) for item in values_by_count[:MAX_VALUES]]}
