"""Search: rank the images of a store for a query, group near-duplicates, and compute the relevance of each hit.

Shapes: N images of the sample, E embedding width.
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
from grr_coca.search.relevance import MIN_RELEVANCE, can_tell, evidence, relevances
from grr_coca.search.store import Store

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Query:
    """Texts and images to look for, and texts to avoid.

    `weights`: one for each text, or none (each text then has weight 1). An image has weight 1.

    Raises:
        UserError: there is nothing to look for, a text is empty, or there are not as many weights as texts.
    """

    texts: tuple[str, ...] = ()
    images: "tuple[str | Path | Image.Image, ...]" = ()
    without: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.texts and not self.images:
            raise UserError("the query is empty; give words to look for, or an image by --image")
        for text in (*self.texts, *self.without):
            if not text.strip():
                raise UserError("the query is empty: a text has only spaces; give words to look for")
        if self.weights and len(self.weights) != len(self.texts):
            raise UserError(f"{len(self.weights)} weights for {len(self.texts)} texts; give one for each text, or none")
        if any(not (weight > 0 and np.isfinite(weight)) for weight in self.weights):
            raise UserError("a weight must be above 0; to avoid something, use --without")

    @property
    def words(self) -> str | None:
        """The text for the full-text index; None if the query has parts that this index does not support."""
        return None if self.images or self.without or self.weights else " ".join(self.texts)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The options of a search.

    `n`: the largest number of hits; `where`: a filter that hits must match; `hybrid`: if the query is texts alone, use
    the full-text index too; `fold`: make one hit of near-duplicates.
    """

    n: int
    where: str | None
    hybrid: bool
    fold: bool


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image that was found.

    `path`: its name in the index; `score`: cosine of its embedding with the query; `relevance`: the probability that it
    is what the query asked for; `copies`: names of its near-duplicates; `is_there`: False if its file no longer exists.
    """

    path: str
    score: float
    relevance: float
    caption: str
    copies: tuple[str, ...]
    is_there: bool
    entry: Entry


_NUM_DECISIVE_HITS = 10
"""Number of first hits that decide if anything looks like what the query asked for."""


@dataclass(frozen=True, kw_only=True)
class SearchResult(Sequence[Hit]):
    """The hits of a query, best first.

    `vector`: embedding of the query; `searched`: number of images in the index; `can_tell`: True if they differ enough
    for relevances to be valid.
    """

    hits: tuple[Hit, ...]
    vector: np.ndarray
    searched: int
    can_tell: bool = True

    @property
    def is_likely(self) -> bool:
        """False if none of the first hits looks like what the query asked for. True if relevances are not valid."""
        return not self.can_tell or any(hit.relevance >= MIN_RELEVANCE for hit in self.hits[:_NUM_DECISIVE_HITS])

    def shown_relevance(self, hit: Hit) -> str:
        """The relevance of a hit as a percentage; `?` if relevances are not valid."""
        return f"{hit.relevance:.0%}" if self.can_tell else "?"

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        """One hit, or several."""
        return self.hits[index]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)


def search_store(query: Query, store: Store, model: IndexModel, options: SearchOptions) -> SearchResult:
    """Search a store.

    Raises:
        UserError: the filter is invalid, an image of the query cannot be read, or the store cannot be read.
    """
    tree = None if options.where is None else parse_filter(options.where, store.columns())
    asked_for = _captions_of_query(query, model)
    with store.snapshot():
        sample = store.sample()
        vector = _query_vector(query, model, sample.vectors)
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
            relevance=round(float(relevance), 4),
            caption=best.caption,
            copies=tuple(copy.name for copy in copies),
            is_there=best.is_there,
            entry=best,
        )
        for (best, *copies), score, relevance in zip(entries, scores, relevances(found), strict=True)
    )
    return SearchResult(
        hits=hits,
        vector=vector,
        searched=searched,
        can_tell=can_tell(vectors[0], sample.vectors, asked, others),
    )


def _captions_of_query(query: Query, model: IndexModel) -> list[str]:
    """The texts that captions of hits are compared with: those of the query, or else captions of its images."""
    return list(query.texts) or [caption for caption, _ in model.describe_images(list(query.images))]


def _groups(
    query: Query, vector: np.ndarray, store: Store, tree: Filter | None, options: SearchOptions
) -> tuple[list[list[int]], np.ndarray]:
    """Ids of the hits, each followed by its near-duplicates, and the embeddings of the hits."""
    count = options.n
    while True:
        ids = _ranked(query, vector, store, tree, options, count)
        vectors = store.vectors(ids)
        if not options.fold:
            return [[identity] for identity in ids[: options.n]], vectors[: options.n]
        entries = store.entries(ids)
        places = folded(vectors, np.array([entry.phash for entry in entries], np.int64))
        if len(places) > options.n or len(ids) < count:
            places = [_existing_first(group, entries) for group in places[: options.n]]
            return [[ids[place] for place in group] for group in places], vectors[[group[0] for group in places]]
        count *= 2  # many near-duplicates: too few groups for `n` hits


def _existing_first(group: list[int], entries: Sequence[Entry]) -> list[int]:
    """The group with an existing file first. After a folder was renamed, old paths must not hide the new ones."""
    best = next((place for place in group if entries[place].is_there), group[0])
    return [best, *(place for place in group if place != best)]


def _ranked(
    query: Query, vector: np.ndarray, store: Store, tree: Filter | None, options: SearchOptions, count: int
) -> list[int]:
    nearest = [match.id for match in store.nearest(vector, count, tree)]
    if not options.hybrid or query.words is None:
        return nearest
    by_words = [match.id for match in store.word_matches(query.words, count, tree)]
    return _fused([nearest, by_words])[:count]


_FUSION_CONSTANT = 60
"""The constant of the paper. The larger it is, the less the first ranks differ from the next ones."""


def _fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion (Cormack et al., SIGIR 2009): sort ids by their sum of 1 / (60 + rank), highest first.

    Ids with equal sums keep their order.
    """
    sums: dict[int, float] = {}
    for ranking in rankings:
        for rank, identity in enumerate(ranking, 1):
            sums[identity] = sums.get(identity, 0.0) + 1 / (_FUSION_CONSTANT + rank)
    return sorted(sums, key=lambda identity: -sums[identity])


# --- The vector of a query

_MIN_DEVIATION = 1e-3
"""The smallest deviation that a part is divided by."""
_WITHOUT_WEIGHT = 0.5
"""Weight of a text after `--without`, to be subtracted. Other parts have weight 1 by default."""


def _query_vector(query: Query, model: IndexModel, sample: np.ndarray) -> np.ndarray:
    """The unit vector whose nearest images answer a query.

    Args:
        query: the query.
        model: the model of the index.
        sample: embeddings of some images of the library, N E.

    Raises:
        UserError: an image of the query cannot be read, or the parts of the query cancel each other.
    """
    parts: list[tuple[float, np.ndarray]] = []
    if query.texts or query.without:
        embedded = model.embed_texts([*query.texts, *query.without])
        weights = [*(query.weights or (1.0,) * len(query.texts)), *(-_WITHOUT_WEIGHT,) * len(query.without)]
        parts += zip(weights, embedded, strict=True)
    if query.images:
        parts += ((1.0, embedding) for embedding in model.embed_images(list(query.images)))
    return _combined(parts, sample)


def _combined(parts: list[tuple[float, np.ndarray]], sample: np.ndarray) -> np.ndarray:
    """The weighted sum of embeddings, as a unit vector.

    Cosines with images are much larger for an image than for a text, because images are closer to images. So each part
    is divided by the standard deviation of its dot products with a sample of the library: it then counts by how far an
    image stands out. The result is one vector, whose nearest images any store can find.

    Raises:
        UserError: the parts cancel each other: the query excludes what it asks for.
    """
    if len(parts) == 1:
        return parts[0][1]
    total = np.zeros_like(parts[0][1])
    for weight, embedding in parts:
        deviation = float((sample @ embedding).std()) if len(sample) > 1 else 1.0
        total = total + weight / max(deviation, _MIN_DEVIATION) * embedding
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise UserError("the query excludes what it asks for; nothing is left to look for")
    return (total / length).astype(np.float32)
