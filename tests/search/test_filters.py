"""The language of filters."""

import pytest
from library import make_entry

from grr_coca.common.errors import UserError
from grr_coca_search.embedded.database import to_row
from grr_coca_search.embedded.embedded_store import to_sql
from grr_coca_search.filters import And, Comparison, Like, Not, OneOf, Or, parse_filter

A, B, C = (Comparison("width", "=", number) for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("width = 1", A),
        ("WIDTH == 1", A),
        ("width < 9223372036854775807", Comparison("width", "<", 2**63 - 1)),
        (f"width < {'0' * 5000}7", Comparison("width", "<", 7)),
        ("width <> 1", Comparison("width", "!=", 1)),
        ("width > -1.5e3", Comparison("width", ">", -1500.0)),
        ("folder='it''s'", Comparison("folder", "=", "it's")),
        ('folder = "say ""a"""', Comparison("folder", "=", 'say "a"')),
        ("width=1 or width=2 and width=3", Or((A, And((B, C))))),
        ("(width=1 or width=2) and width=3", And((Or((A, B)), C))),
        ("not width=1 and width=2", And((Not(A), B))),
        ("not (width=1 AND width=2)", Not(And((A, B)))),
        ("width in (1)", OneOf("width", (1,))),
        ("folder not in ('a', 'b')", Not(OneOf("folder", ("a", "b")))),
        ("path like '/a/%'", Like("path", "/a/")),
        ("path not like '%'", Not(Like("path", ""))),
    ],
)
def test_filter_is_a_tree(text, tree):
    assert parse_filter(text) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht > 3", "unknown field 'widht'; did you mean 'width'?"),
        ("prise > 3", "unknown field 'prise'; did you mean 'price'?"),
        ("", "the filter is empty"),
        ("width >", "expected a number, or a text between quotes at character 8, found the end"),
        ("width 3", "expected one of = != < <= > >= in like not at character 7, found '3'"),
        ("folder = 'a", "a quote is not closed, at character 10"),
        ("width = 1 width = 2", "expected 'and', 'or' or the end at character 11, found 'width'"),
        ("(width = 1", "expected ')' at character 11"),
        ("width = 'a'", "'width' is a number field, and cannot be compared with 'a'"),
        ("folder in ('a', 3)", "'folder' is a text field, and cannot be compared with 3"),
        ("folder like 'a%b'", "'like' needs a text with a single % at its end"),
        ("and = 3", "expected the name of a field"),
        ("width = 99999999999999999999", "out of range"),
        ("width = 9223372036854775808", "out of range"),
        ("width = 1e400", "out of range"),
        (f"width = -{'9' * 5000}", "out of range"),
        ("not " * 60 + "width = 1", "more than 50 nested brackets"),
        (
            " or ".join(["width = 1"] * 901),
            "too many comparisons: 901 (limit 900); use 'in' for many values of a field",
        ),
    ],
)
def test_invalid_filter_raises(text, message):
    with pytest.raises(UserError) as error:
        parse_filter(text, ["price"])
    assert str(error.value).startswith("where: ")
    assert message in str(error.value)


def test_long_number_is_read_once():
    """A search holds the interpreter: a server would answer nobody meanwhile. This one would outlast a test, if each
    digit were tried with each other one."""
    with pytest.raises(UserError, match="is invalid, at character 9"):
        parse_filter(f"width > {'1' * 200_000}a")


@pytest.mark.parametrize(
    "text",
    ["1=1; DROP TABLE pictures", "width = 1; DELETE FROM pictures", "width = 1 -- ", "width = (SELECT 1)", "1 = 1",
     "width = 1 UNION SELECT * FROM header", "randomblob(1e9) = 1", "pictures.width = 1", "width = width"],
)  # fmt: skip
def test_rejects_sql_as_a_filter(text):
    with pytest.raises(UserError, match=r"^where: "):
        parse_filter(text)


def test_values_and_columns_are_bound_parameters():
    condition, values = to_sql(parse_filter("price > 'secret' and folder like 'hidden%' and size = 5", ["price"]))
    assert not any(word in condition for word in ("secret", "hidden", "price", "5"))
    assert {'$."price"', "secret", "hidden", 5} <= set(values)


def test_column_names_are_queried_as_stored():
    """SQLite before 3.45 compares names letter by letter: an escaped letter is not the letter itself."""
    _, (path, *_) = to_sql(parse_filter("цена > 4", ["цена"]))
    kept = to_row(make_entry(1, fields={"цена": 5}))
    assert any(isinstance(value, str) and path.removeprefix("$.") in value for value in kept)
