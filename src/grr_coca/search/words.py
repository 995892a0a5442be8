"""Words of a text, as the full-text index has them, and lists cut into pieces."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def search_words(text: str) -> list[str]:
    """The words of a text in lower case, each once."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.lower())))


def pieces(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last of which may be shorter."""
    source = iter(items)
    while piece := list(islice(source, size)):
        yield piece
