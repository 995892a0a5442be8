"""A filter as a tree. A comparison with a field that a picture lacks, or of another kind, is false."""

from dataclasses import dataclass
from typing import Literal

from grr_coca.search.entry import FieldValue

Operator = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Comparison:
    """`width > 64`."""

    field: str
    operator: Operator
    value: FieldValue


@dataclass(frozen=True)
class OneOf:
    """`folder in ('logos', 'icons')`."""

    field: str
    values: tuple[FieldValue, ...]


@dataclass(frozen=True)
class Like:
    """`path like '/photos/%'`: text, in which `%` stands for anything; letters count as they are written.

    `prefix` is what stands before the only `%`, which is the last character.
    """

    field: str
    prefix: str


@dataclass(frozen=True)
class Not:
    """The opposite."""

    inner: "Filter"


@dataclass(frozen=True)
class And:
    """`and`."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Or:
    """`or`."""

    parts: tuple["Filter", ...]


Filter = Comparison | OneOf | Like | Not | And | Or


def fields_of(tree: Filter) -> set[str]:
    """The fields that a filter names."""
    if isinstance(tree, And | Or):
        return set().union(*(fields_of(part) for part in tree.parts))
    return fields_of(tree.inner) if isinstance(tree, Not) else {tree.field}
