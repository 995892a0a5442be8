"""Filter language. Texts such as `folder = 'logos' and width > 64` are parsed into trees, which the stores translate.

filter     = term ("or" term)*
term       = factor ("and" factor)*
factor     = "not" factor | "(" filter ")" | field test
test       = ("=" | "!=" | "<" | "<=" | ">" | ">=") value
           | ["not"] "in" "(" value ("," value)* ")" | ["not"] "like" text
value      = number | text between single or double quotes, in which two quotes represent one

`==` and `<>` are synonyms of `=` and `!=`. The case of keywords and field names does not matter. A comparison is false
for an image that does not have the field, or whose value has the other kind (text or number).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from grr_coca.common.errors import UserError, suggest_name
from grr_coca_search.entry import FILTER_WORDS
from grr_coca_search.fields import FIELDS, FieldValue, Kind

Operator = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Comparison:
    """Comparison such as `width > 64`."""

    field: str
    operator: Operator
    value: FieldValue


@dataclass(frozen=True)
class OneOf:
    """Test that is true if a field has one of several values, such as `folder in ('logos', 'icons')`."""

    field: str
    values: tuple[FieldValue, ...]


@dataclass(frozen=True)
class Like:
    """Test that is true if a field begins with a prefix, such as `path like '/photos/%'`. It is case-sensitive.

    Attributes:
        prefix: The prefix, without the `%` after it.
    """

    field: str
    prefix: str


@dataclass(frozen=True)
class Not:
    """Negation, which is true if the inner filter is false."""

    inner: "Filter"


@dataclass(frozen=True)
class And:
    """Conjunction, which is true if all parts are true."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Or:
    """Disjunction, which is true if at least one part is true."""

    parts: tuple["Filter", ...]


Filter = Comparison | OneOf | Like | Not | And | Or


def parse_filter(text: str, columns: Iterable[str] = ()) -> Filter:
    """Parse the text of a filter into a tree.

    Args:
        text: The filter, as users write it.
        columns: Names of the fields that come from users' tables. They are valid in addition to `FIELDS`.

    Raises:
        UserError: If the filter is invalid or too long, names an unknown field, or compares a field with a value of the
            wrong kind. The message names the position of the error, the most similar field, or an example.
    """
    tree = _Parser(text).parse()
    tests = list(_tests(tree))
    if len(tests) > _MAX_TESTS:
        raise UserError(
            f"where: too many comparisons: {len(tests):,} (limit {_MAX_TESTS}); use 'in' for many values of a field"
        )
    of_tables = set(columns)  # a column with the name of a metadata field may have any values
    valid = {*FIELDS, *of_tables}
    for name in sorted({test.field for test in tests}):
        if name not in valid:
            raise UserError(f"where: unknown field '{name}'; {suggest_name(name, valid)}")
    for test in tests:
        if test.field not in of_tables:
            _require_kind(test, FIELDS[test.field].kind)
    return tree


def _tests(tree: Filter) -> Iterator[Comparison | OneOf | Like]:
    """Yield all tests in a filter. Each of them tests a single field."""
    if isinstance(tree, And | Or):
        for part in tree.parts:
            yield from _tests(part)
    elif isinstance(tree, Not):
        yield from _tests(tree.inner)
    else:
        yield tree


def _require_kind(test: Comparison | OneOf | Like, kind: Kind) -> None:
    values = test.values if isinstance(test, OneOf) else (test.prefix if isinstance(test, Like) else test.value,)
    for value in values:
        if (kind == "text") != isinstance(value, str):
            example = f"{test.field} > 64" if kind == "number" else f"{test.field} = '{value}'"
            raise UserError(
                f"where: '{test.field}' is a {kind} field, and cannot be compared with {value!r}; write, for example, "
                f"{example}"
            )


_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    |(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<name>[^\W\d]\w*)
    |(?P<sign><=|>=|!=|<>|==|[=<>(),])
    |(?P<end>$))""",
    re.VERBOSE,
)
_SYNONYMS = {"==": "=", "<>": "!="}
_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
_MAX_DEPTH = 50
_MAX_TESTS = 900
"""Maximum number of tests in a filter. SQLite accepts trees up to a depth of 1000, and each `and` and `or` adds one
level."""
_MAX_INTEGER_LENGTH = len(str(-(2**63)))
"""Maximum number of characters in an integer. Longer integers are out of range, and `int` rejects a text of thousands
of digits."""


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._next = 0
        self._depth = 0

    def parse(self) -> Filter:
        tree = self._filter()
        if self._peek().kind != "end":
            raise self._error("'and', 'or' or the end")
        return tree

    def _filter(self) -> Filter:
        parts = [self._term()]
        while self._accept("or"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _term(self) -> Filter:
        parts = [self._factor()]
        while self._accept("and"):
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _factor(self) -> Filter:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UserError(f"where: more than {_MAX_DEPTH} nested brackets or 'not'; simplify the filter")
        try:
            if self._accept("not"):
                return Not(self._factor())
            if self._accept("("):
                tree = self._filter()
                self._expect(")")
                return tree
            return self._test()
        finally:
            self._depth -= 1

    def _test(self) -> Filter:
        token = self._peek()
        if token.kind != "name" or token.text.lower() in FILTER_WORDS:
            raise self._error("the name of a field")
        self._next += 1
        field = token.text.lower()
        if self._accept("not"):
            return Not(self._set_or_prefix(field, "'in' or 'like'"))
        sign = _SYNONYMS.get(self._peek().text, self._peek().text)
        if self._peek().kind == "sign" and sign in _COMPARISONS:
            self._next += 1
            return Comparison(field, cast(Operator, sign), self._value())
        return self._set_or_prefix(field, f"one of {' '.join(_COMPARISONS)} in like not")

    def _set_or_prefix(self, field: str, expected: str) -> Filter:
        if self._accept("in"):
            self._expect("(")
            values = [self._value()]
            while self._accept(","):
                values.append(self._value())
            self._expect(")")
            return OneOf(field, tuple(values))
        if not self._accept("like"):
            raise self._error(expected)
        pattern = self._value()
        if not isinstance(pattern, str) or pattern.find("%") != len(pattern) - 1 or not pattern:
            raise UserError(
                f"where: 'like' needs a text with a single % at its end, such as '/photos/%', got {pattern!r}"
            )
        return Like(field, pattern[:-1])

    def _value(self) -> FieldValue:
        token = self._peek()
        self._next += 1
        if token.kind == "text":
            quote = token.text[0]
            return token.text[1:-1].replace(quote * 2, quote)
        if token.kind == "number":
            is_integer = len(token.text) <= _MAX_INTEGER_LENGTH and not re.search(r"[.eE]", token.text)
            number = int(token.text) if is_integer else float(token.text)
            if abs(number) >= 2**63:
                raise UserError(f"where: {token.text[:40]} is out of range; use a number between -2^63 and 2^63")
            return number
        self._next -= 1
        raise self._error("a number, or a text between quotes")

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _accept(self, word: str) -> bool:
        token = self._peek()
        matches = token.kind in ("name", "sign") and token.text.lower() == word
        self._next += matches
        return matches

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._error(f"'{sign}'")

    def _error(self, expected: str) -> UserError:
        token = self._peek()
        found = f"'{token.text}'" if token.text else "the end"
        return UserError(f"where: expected {expected} at character {token.start + 1}, found {found}: {self._text}")


def _tokens(text: str) -> Iterable[_Token]:
    if not text.strip():
        raise UserError("where: the filter is empty; write a filter such as folder = 'logos' and width > 64")
    place = 0
    while True:
        match = _TOKEN.match(text, place)
        if match is None:
            start = place + len(text[place:]) - len(text[place:].lstrip())
            why = "a quote is not closed" if text[start] in "'\"" else f"'{text[start]}' is invalid"
            raise UserError(f"where: {why}, at character {start + 1}: {text}")
        kind = str(match.lastgroup)
        yield _Token(kind, match.group(kind), match.start(kind))
        if kind == "end":
            return
        place = match.end()
