"""Searches a store: the nearest pictures, near-duplicates folded, each with how likely it is what was asked for.

A query (texts, pictures, and what must not be there), and its vector.

Shapes: N pictures of the sample, E embedding width.

The cosines of a picture with a text and with another picture lie at very different heights (pictures are closer to
pictures than to texts), so they cannot be added as they are. Each part is divided by the standard deviation of its
cosines over a sample of the library, so that it counts by how far a picture stands out. The sum is one vector again,
whose nearest pictures any store can find.

The answer to a query: hits, and whether they look like what was asked for.

Reciprocal rank fusion: merges rankings into one (Cormack et al., SIGIR 2009).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from grr_coca.errors import UserError
from grr_coca.search.duplicates import folded
from grr_coca.search.entry import Entry
from grr_coca.search.filters import Filter, parse_filter
from grr_coca.search.model import IndexModel
from grr_coca.search.relevance import NOTHING, can_tell, evidence, relevances
from grr_coca.search.store import Store

if TYPE_CHECKING:
    from PIL import Image

    from grr_coca.search.model import IndexModel

LEAST_DEVIATION = 1e-3
"""The smallest deviation that a part is divided by."""
WITHOUT_WEIGHT = 0.5
"""Weight of a text after --without. What is looked for weighs 1, unless the query says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """Texts and pictures that are looked for, and texts that are not.

    `weights`: one for each text, or none (each text then weighs 1). A picture weighs 1.

    Raises:
        UserError: nothing is looked for, a text is empty, or the weights are not as many as the texts.
    """

    texts: tuple[str, ...] = ()
    images: "tuple[str | Path | Image.Image, ...]" = ()
    without: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.texts and not self.images:
            raise UserError("the query is empty; give words to look for, or a picture by --image")
        for text in (*self.texts, *self.without):
            if not text.strip():
                raise UserError("the query is empty: a text of spaces says nothing; give words to look for")
        if self.weights and len(self.weights) != len(self.texts):
            raise UserError(f"{len(self.weights)} weights for {len(self.texts)} texts; give one for each text, or none")
        if any(not (weight > 0 and np.isfinite(weight)) for weight in self.weights):
            raise UserError("a weight must be above 0; what must not be there goes after --without")

    @property
    def words(self) -> str | None:
        """All texts, for the full-text index; None for a query that it cannot answer, because it is not words alone."""
        return None if self.images or self.without or self.weights else " ".join(self.texts)


def query_vector(query: Query, model: "IndexModel", sample: np.ndarray) -> np.ndarray:
    """The vector of unit length whose nearest pictures answer a query.

    Args:
        query: what is asked for.
        model: the model of the index.
        sample: embeddings of some pictures of the library, N E.

    Raises:
        UserError: a picture of the query cannot be read, or the query asks for what it leaves out.
    """
    parts: list[tuple[float, np.ndarray]] = []
    if query.texts or query.without:
        embedded = model.embed_texts([*query.texts, *query.without])
        weights = [*(query.weights or (1.0,) * len(query.texts)), *(-WITHOUT_WEIGHT,) * len(query.without)]
        parts += zip(weights, embedded, strict=True)
    if query.images:
        parts += ((1.0, embedding) for embedding in model.embed_images(list(query.images)))
    return combined(parts, sample)


def combined(parts: list[tuple[float, np.ndarray]], sample: np.ndarray) -> np.ndarray:
    """The weighted sum of embeddings, each divided by the deviation of its products with the sample; of unit length.

    Raises:
        UserError: the parts cancel each other, so the query asks for what it leaves out.
    """
    if len(parts) == 1:
        return parts[0][1]
    total = np.zeros_like(parts[0][1])
    for weight, embedding in parts:
        deviation = float((sample @ embedding).std()) if len(sample) > 1 else 1.0
        total = total + weight / max(deviation, LEAST_DEVIATION) * embedding
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise UserError("the query asks for what it leaves out; nothing is left to look for")
    return (total / length).astype(np.float32)


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


CONSTANT = 60
"""The constant of the paper. The larger it is, the less the first ranks stand out from the next ones."""


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """The ids of all rankings, sorted by their sum of 1 / (60 + rank), the highest first. Ties stay as they came."""
    sums: dict[int, float] = {}
    for ranking in rankings:
        for rank, identity in enumerate(ranking, 1):
            sums[identity] = sums.get(identity, 0.0) + 1 / (CONSTANT + rank)
    return sorted(sums, key=lambda identity: -sums[identity])


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The options of a search.

    `n`: the most hits; `where`: a filter that hits must meet; `hybrid`: for words alone, use the full-text index too;
    `fold`: make one hit of near-duplicates.
    """

    n: int
    where: str | None
    hybrid: bool
    fold: bool


def search_store(query: Query, store: Store, model: IndexModel, options: SearchOptions) -> SearchResult:
    """Search a store.

    Raises:
        UserError: the filter is none, a picture of the query cannot be read, or the store cannot be read.
    """
    tree = None if options.where is None else parse_filter(options.where, store.columns())
    asked_for = _said_of(query, model)
    with store.snapshot():
        sample = store.sample()
        vector = query_vector(query, model, sample.vectors)
        groups, vectors = _groups(query, vector, store, tree, options)
        entries = [store.entries(group) for group in groups]
        searched = len(store)
    scores = vectors @ vector
    texts = [group[0].caption for group in entries]
    if not texts:
        return SearchResult(hits=(), vector=vector, searched=searched)
    embedded = model.embed_captions([*asked_for, *texts])
    asked, captions = embedded[: len(asked_for)], embedded[len(asked_for) :]
    others = model.embed_sample(sample.captions)
    found = evidence(vector, scores, sample.vectors, asked=asked, captions=captions, others=others)
    hits = tuple(
        Hit(
            path=best.name,
            score=round(float(score), 6),
            relevance=round(float(chance), 4),
            caption=best.caption,
            copies=tuple(copy.name for copy in copies),
            is_there=best.is_there,
            entry=best,
        )
        for (best, *copies), score, chance in zip(entries, scores, relevances(found), strict=True)
    )
    return SearchResult(
        hits=hits,
        vector=vector,
        searched=searched,
        can_tell=can_tell(vectors[0], sample.vectors, asked, others),
    )


def _said_of(query: Query, model: IndexModel) -> list[str]:
    """The texts that captions of hits are compared with: those of the query, or the model's of its pictures."""
    return list(query.texts) or [caption for caption, _ in model.describe_images(list(query.images))]


def _groups(
    query: Query, vector: np.ndarray, store: Store, tree: Filter | None, options: SearchOptions
) -> tuple[list[list[int]], np.ndarray]:
    """Ids of the hits, each with its near-duplicates behind it, and the embeddings of the hits."""
    count = options.n
    while True:
        ids = _ranked(query, vector, store, tree, options, count)
        vectors = store.vectors(ids)
        if not options.fold:
            return [[identity] for identity in ids[: options.n]], vectors[: options.n]
        entries = store.entries(ids)
        places = folded(vectors, np.array([entry.phash for entry in entries], np.int64))
        if len(places) > options.n or len(ids) < count:
            places = [_with_one_that_is_there_first(group, entries) for group in places[: options.n]]
            return [[ids[place] for place in group] for group in places], vectors[[group[0] for group in places]]
        count *= 2


def _with_one_that_is_there_first(group: list[int], entries: Sequence[Entry]) -> list[int]:
    """A picture that is gone, as after its folder was renamed, does not hide its near-duplicates."""
    best = next((place for place in group if entries[place].is_there), group[0])
    return [best, *(place for place in group if place != best)]


def _ranked(
    query: Query, vector: np.ndarray, store: Store, tree: Filter | None, options: SearchOptions, count: int
) -> list[int]:
    nearest = [match.id for match in store.nearest(vector, count, tree)]
    if not options.hybrid or query.words is None:
        return nearest
    by_words = [match.id for match in store.word_matches(query.words, count, tree)]
    return fused([nearest, by_words])[:count]
