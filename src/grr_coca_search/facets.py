"""Facets: the fields by which the images of an index can be filtered, and the values of these fields."""

from collections.abc import Iterable, Mapping, Sequence

from grr_coca_search.entry import Entry
from grr_coca_search.fields import FIELDS
from grr_coca_search.filters import Filter
from grr_coca_search.store import FieldSummary, Store, summaries_of

_MAX_VALUES = 100
"""Maximum number of values that are listed for a field. The most frequent values are listed."""

Facet = dict[str, object]
"""Facet of a field. `field` is the name of the field, and `kind` is `text`, `number` or `date`. A facet of kind `text`
also has `values`, a list of pairs of a value and its number of images. Facets of the other kinds have `min` and `max`.
"""


def facet_fields(columns: Iterable[str]) -> list[str]:
    """Return the fields that may be facets, in display order. Fields from tables (`columns`) come first."""
    return list(dict.fromkeys([*sorted(columns), *(name for name, field in FIELDS.items() if field.is_facet)]))


def facets(store: Store) -> list[Facet]:
    """Return the facets of an index.

    Raises:
        UserError: If the index cannot be read.
    """
    return _facets(store.summaries(facet_fields(store.columns()), _MAX_VALUES))


def facets_of(entries: Sequence[Entry], fields: Iterable[str]) -> list[Facet]:
    """Return the facets of the given images for the given fields."""
    return _facets(summaries_of(([entry] for entry in entries), fields, _MAX_VALUES))


def counts(store: Store, fields: Iterable[str], where: Filter) -> list[Facet]:
    """Return the values of the given fields among the images that match a filter, each with its number of images.

    Numbers and dates are omitted. Text fields are included even if all of their values differ.

    Raises:
        UserError: If the index cannot be read.
    """
    return _counts(store.summaries(fields, _MAX_VALUES, where))


def counts_of(groups: Sequence[Sequence[Entry]], fields: Iterable[str]) -> list[Facet]:
    """Return the values of the given fields, each with the number of groups that have the value.

    Numbers and dates are omitted. Text fields are included even if all of their values differ.

    A group has a value if at least one of its near-duplicates has it, because a filter for this value would also select
    that group.
    """
    return _counts(summaries_of(groups, fields, _MAX_VALUES))


def _counts(summaries: Mapping[str, FieldSummary]) -> list[Facet]:
    return [
        {"field": field, "kind": "text", "values": [list(pair) for pair in found.values]}
        for field, found in summaries.items()
        if found.kind == "text" and found.low is not None and not _is_date(field)
    ]


def _is_date(field: str) -> bool:
    return field in FIELDS and FIELDS[field].is_date


def _facets(summaries: Mapping[str, FieldSummary]) -> list[Facet]:
    found = (_facet(field, summary) for field, summary in summaries.items())
    return [facet for facet in found if facet is not None]


def _facet(field: str, found: FieldSummary) -> Facet | None:
    """Return the facet of a field.

    Return None if no image has the field, or if its values are texts that all differ, such as titles.
    """
    if found.low is None:
        return None
    is_date = _is_date(field) and isinstance(found.low, str)  # false for a table column `taken` that contains numbers
    if is_date or found.kind == "number":
        return {"field": field, "kind": "date" if is_date else "number", "min": found.low, "max": found.high}
    if found.all_differ:
        return None
    return {"field": field, "kind": "text", "values": [list(pair) for pair in found.values]}
