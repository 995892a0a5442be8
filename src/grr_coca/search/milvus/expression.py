"""A filter as an expression of Milvus. Every value is written by `json.dumps`, so none can break out of its quotes."""

import json
import math

from grr_coca.search.entry import OWN_FIELDS, FieldValue
from grr_coca.search.filters import And, Comparison, Filter, Like, Not, OneOf, Or
from grr_coca.search.milvus.rows import as_utf8

COLUMNS = {"path": "name"}
NEVER, ALWAYS = "id < 0", "id >= 0"
"""Conditions that no row and every row meets, because ids are not negative."""


def to_expression(tree: Filter) -> str:
    """The expression of a filter."""
    if isinstance(tree, And | Or):
        word = " and " if isinstance(tree, And) else " or "
        return "(" + word.join(to_expression(part) for part in tree.parts) + ")"
    if isinstance(tree, Not):
        return f"(not {to_expression(tree.inner)})"
    if isinstance(tree, Comparison):
        return _test(tree.field, tree.operator, tree.value)
    if isinstance(tree, OneOf):
        return "(" + " or ".join(_test(tree.field, "=", value) for value in tree.values) + ")"
    assert isinstance(tree, Like)
    test = f"{_column(tree.field)} like {quoted(tree.prefix + '%')}"
    return f"({test})" if tree.field in OWN_FIELDS else f"({_same_kind(tree.field, tree.prefix)} and {test})"


def quoted(text: str) -> str:
    """A text as a literal between double quotes."""
    return json.dumps(as_utf8(text), ensure_ascii=False)


def _column(field: str) -> str:
    return COLUMNS.get(field, field) if field in OWN_FIELDS else f"fields[{quoted(field)}]"


def _test(field: str, operator: str, value: FieldValue) -> str:
    sign = {"=": "=="}.get(operator, operator)
    if field not in OWN_FIELDS:
        return f"({_same_kind(field, value)} and {_column(field)} {sign} {_literal(value)})"
    if isinstance(value, float):
        return _whole(field, operator, value)
    return f"({_column(field)} {sign} {_literal(value)})"


def _same_kind(field: str, value: FieldValue) -> str:
    """A test that a field is there and of the kind of a value. The column `kinds` has the kind of each field."""
    kind = "text" if isinstance(value, str) else "number"
    return f'kinds[{quoted(field)}] == "{kind}"'


def _literal(value: FieldValue) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def _whole(field: str, operator: str, value: float) -> str:
    """A comparison of a whole-number field with a float, written with a whole number."""
    below, above = math.floor(value), math.ceil(value)
    if operator in ("=", "!=") and below != above:
        return f"({NEVER if operator == '=' else ALWAYS})"
    bound = below if operator in (">", "<=", "=", "!=") else above
    return f"({_column(field)} {'==' if operator == '=' else operator} {bound})"
