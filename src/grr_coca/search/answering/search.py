"""Searches a store: the nearest pictures, near-duplicates folded, each with how likely it is what was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grr_coca.search.answering.fusion import fused
from grr_coca.search.answering.query import Query, query_vector
from grr_coca.search.answering.relevance import can_tell, evidence, relevances
from grr_coca.search.answering.result import Hit, SearchResult
from grr_coca.search.duplicates import folded
from grr_coca.search.entry import Entry
from grr_coca.search.filters.parse import parse_filter
from grr_coca.search.filters.tree import Filter
from grr_coca.search.model import IndexModel
from grr_coca.search.store import Store


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
