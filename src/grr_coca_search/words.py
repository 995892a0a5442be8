"""Words of names and queries: `ShoppingCart`, `shopping-cart` and `lucide:shopping-cart` are two words.

The page does the same in `words.js`.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from grr_coca.data.text import FUNCTION_WORDS, singular

_RUNS = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")
_IDENTIFIER = re.compile(r"(?:([^\s:]+):)?([^\s:]+)")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without accents. Names are split where case, letters and digits change."""
    bare = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.category(c).startswith("M"))
    return [part.lower() for run in _RUNS.findall(bare) for part in _CAMEL.findall(run)]


class AskedName(NamedTuple):
    """A query that may be the name of a picture. `prefix`: the set before a colon, or empty; `words`: of the name."""

    prefix: str
    words: tuple[str, ...]

    @classmethod
    def of(cls, query: str) -> "AskedName":
        """The name that a query asks for, such as `mdi:home`, `ShoppingCart` or `shopping cart`."""
        found = _IDENTIFIER.fullmatch(query.strip())
        prefix, name = found.groups("") if found else ("", query)
        return cls(prefix.lower(), tuple(words_of(name)))

    def is_of(self, name: str) -> bool:
        """True if a name is this one, whatever its spelling. A set before the colon of `name` does not count."""
        return bool(self.words) and tuple(words_of(name.rpartition(":")[2])) == self.words


def in_words(query: str) -> str:
    """A query that is an identifier (`shopping-cart`, `ShoppingCart`, `mdi:home`) in words; another one as it is."""
    name = AskedName.of(query)
    is_identifier = len(query.split()) == 1 and name.words and words_of(query) != [query.strip().lower()]
    return " ".join(name.words) if is_identifier else query


def asked_words(query: str) -> frozenset[str]:
    """The words of a query that say something, in the singular. `has_words` looks for them."""
    words = AskedName.of(query).words
    return frozenset(map(_singular, [word for word in words if word not in FUNCTION_WORDS] or words))


def split_name(name: str) -> str:
    """The words of a name, for a full-text index that does not split `ShoppingCart` itself; empty if it splits it."""
    split = words_of(name)
    return "" if split == [word for word in re.split(r"[\W_]+", name.lower()) if word] else " ".join(split)


def has_words(asked: frozenset[str], texts: Iterable[str]) -> bool:
    """True if texts have all words that were asked for (at least one), in the singular or plural."""
    found = {_singular(word) for text in texts for word in (*words_of(text), *text.lower().split())}
    return bool(asked) and asked <= found


def _singular(word: str) -> str:
    """English plurals without their ending. What looks like a plural loses its ending too, so compare both sides."""
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return singular(word)
