"""A filter as a condition in SQL. Every value is a parameter of the statement."""

from collections.abc import Sequence

from grr_coca.search.entry import FieldValue
from grr_coca.search.filters.fields import OWN_FIELDS
from grr_coca.search.filters.tree import And, Comparison, Filter, Like, Not, OneOf, Or

COLUMNS = {"path": "name"}
"""Columns whose names are not those of their fields, by field."""
TEXT = "CAST(? AS TEXT)"
"""A parameter that is a text, even where it is bound as the bytes of a file name that is not UTF-8."""


def to_sql(tree: Filter) -> tuple[str, list[FieldValue]]:
    """The condition and the values of its question marks."""
    values: list[FieldValue] = []
    return _condition(tree, values), values


def _condition(tree: Filter, values: list[FieldValue]) -> str:
    if isinstance(tree, And | Or):
        word = " AND " if isinstance(tree, And) else " OR "
        return "(" + word.join(_condition(part, values) for part in tree.parts) + ")"
    if isinstance(tree, Not):
        return f"NOT {_condition(tree.inner, values)}"
    if isinstance(tree, Comparison):
        return _test(tree.field, tree.operator, tree.value, values)
    if isinstance(tree, OneOf):
        kinds = [[v for v in tree.values if isinstance(v, str) is is_text] for is_text in (True, False)]
        return "(" + " OR ".join(_is_one_of(tree.field, kind, values) for kind in kinds if kind) + ")"
    assert isinstance(tree, Like)
    column = _column(tree.field, values)
    values += [len(tree.prefix), tree.prefix]
    return _of_kind(f"substr({column}, 1, ?) = {TEXT}", tree.field, tree.prefix, values)


def _test(field: str, operator: str, value: FieldValue, values: list[FieldValue]) -> str:
    column = _column(field, values)
    values.append(value)
    return _of_kind(f"{column} {operator} {_mark(value)}", field, value, values)


def _is_one_of(field: str, of_a_kind: Sequence[FieldValue], values: list[FieldValue]) -> str:
    """One test for all values: a chain of thousands is deeper than SQLite goes."""
    column = _column(field, values)
    values += of_a_kind
    return _of_kind(f"{column} IN ({', '.join(map(_mark, of_a_kind))})", field, of_a_kind[0], values)


def _mark(value: FieldValue) -> str:
    return TEXT if isinstance(value, str) else "?"


def _of_kind(test: str, field: str, value: FieldValue, values: list[FieldValue]) -> str:
    """The test, made false (and not NULL) for a picture without the field, or whose value is of another kind."""
    if field in OWN_FIELDS:
        return f"({test})"
    kinds = "'text'" if isinstance(value, str) else "'integer', 'real'"
    typed = _column(field, values)
    return f"IFNULL({test} AND typeof({typed}) IN ({kinds}), 0)"


def _column(field: str, values: list[FieldValue]) -> str:
    if field in OWN_FIELDS:
        return f"pictures.{COLUMNS.get(field, field)}"
    # A parameter too: the name is known to be a field of the index, and still is never written into the statement.
    values.append(f"$.{field}")
    return "json_extract(pictures.fields, ?)"
