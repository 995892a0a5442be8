"""One rule of the tokenizer, and the functions by which a rule rewrites its token."""

import re
from collections.abc import Callable
from typing import NamedTuple

Rewrite = Callable[[str], str]

BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
CURRENCIES = {"¢": "cents", "£": "#", "€": "$"}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}


class Rule(NamedTuple):
    """A rule for one kind of token.

    `name` says what the rule is for. Group 1 of `pattern` is the token. The part of the pattern after the group must
    follow the token, and stays in the text for the next rule. `rewrite` returns the token as it is written.
    """

    name: str
    pattern: re.Pattern[str]
    rewrite: Rewrite


def keep(token: str) -> str:
    """The token, unchanged."""
    return token


def drop(_: str) -> str:
    """Nothing: the token is dropped."""
    return ""


def straight(token: str) -> str:
    """The token with an ASCII apostrophe."""
    return token.replace("&apos;", "'").replace("’", "'").replace("‘", "`")


def plain(token: str) -> str:
    """The token without soft hyphens, which only mark where a word may be broken."""
    return token.replace("\u00ad", "")


def bracketed(token: str) -> str:
    """The token with its round brackets spelled out. Other brackets, as in a smiley, stay."""
    return token.replace("(", BRACKETS["("]).replace(")", BRACKETS[")"])


def unbroken(token: str) -> str:
    """The token with unbreakable spaces instead of spaces, and with its round brackets spelled out."""
    return bracketed(token).replace(" ", "\u00a0")


def mapped(table: dict[str, str]) -> Rewrite:
    """A rewrite by a table. A token that is not in the table stays unchanged."""
    return lambda token: table.get(token.lower(), token)
