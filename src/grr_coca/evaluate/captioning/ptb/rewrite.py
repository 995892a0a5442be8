"""How a token is written, where it is not written as it stands."""

from collections.abc import Callable

Rewrite = Callable[[str], str]

BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
CURRENCIES = {"¢": "cents", "£": "#", "¤": "$", "\u0080": "$", "\u20a0": "$", "€": "$"}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&apos;": "'"}
QUOTES = str.maketrans(
    {**dict.fromkeys("‘‛‹\u0091", "`"), **dict.fromkeys("’›\u0092", "'")}
    | {**dict.fromkeys("“«\u0093", "``"), **dict.fromkeys("”»\u0094", "''")}
)


def keep(token: str) -> str:
    """The token as it stands."""
    return token


def drop(_: str) -> str:
    """No token."""
    return ""


def straight(token: str) -> str:
    """Typographic apostrophes as ASCII."""
    return token.replace("&apos;", "'").translate(QUOTES)


def plain(token: str) -> str:
    """Without the hyphens that only mark where a word may be broken; alone, one is a hyphen."""
    return token.replace("&amp;", "&").replace("\u00ad", "") or "-"


def bracketed(token: str) -> str:
    """Round brackets by name; Stanford leaves the other kinds in a smiley."""
    return token.replace("(", BRACKETS["("]).replace(")", BRACKETS[")"])


def unbroken(token: str) -> str:
    """Spaces inside a token become unbreakable ones."""
    return bracketed(token).replace(" ", "\u00a0")


def constant(token: str) -> Rewrite:
    """The same token, whatever was matched."""
    return lambda _: token


def mapped(table: dict[str, str]) -> Rewrite:
    """The token that a table has for it, or itself."""
    return lambda token: table.get(token.lower(), token)
