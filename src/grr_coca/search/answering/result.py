"""The answer to a query: hits, and whether they look like what was asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from grr_coca.search.answering.relevance import NOTHING
from grr_coca.search.entry import Entry

LOOKED_AT = 10
"""Number of first hits that decide whether anything looks like what was asked for."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A picture that was found.

    `path`: where it is; `score`: cosine of its embedding and the query; `relevance`: how likely it is what was asked
    for; `copies`: paths of its near-duplicates; `is_there`: false if its file is gone since it was indexed.
    """

    path: str
    score: float
    relevance: float
    caption: str
    copies: tuple[str, ...]
    is_there: bool
    entry: Entry


@dataclass(frozen=True, kw_only=True)
class SearchResult(Sequence[Hit]):
    """Hits, the best first.

    `vector`: the query; `searched`: number of pictures in the index; `can_tell`: whether they differ enough for
    relevances to mean something.
    """

    hits: tuple[Hit, ...]
    vector: np.ndarray
    searched: int
    can_tell: bool = True

    @property
    def is_likely(self) -> bool:
        """False if nothing here looks like what was asked for: none of the first hits is likely. True where that cannot
        be told."""
        return not self.can_tell or any(hit.relevance >= NOTHING for hit in self.hits[:LOOKED_AT])

    def shown_relevance(self, hit: Hit) -> str:
        """The relevance of a hit for people; `?` where it means nothing."""
        return f"{hit.relevance:.0%}" if self.can_tell else "?"

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        """A hit, or some."""
        return self.hits[index]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)
