"""Search: rank the images of a store for a query, group near-duplicates, and compute the relevance of each hit.

Relevance compares the query with the captions of the hits and with the captions of a sample of the library. Captions
are embedded during the search, which takes milliseconds; those of the sample are embedded only once per index state. If
the index stored the embeddings of all captions instead, it would be twice as large.

Shapes: M texts or images, N images of the sample, E embedding width.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, overload

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.data.tokenizer import FUNCTION_WORDS, singular, words_of
from grr_coca.model.checkpoint_files import THESAURUS
from grr_coca_search.entry import MAX_BITS, MIN_COSINE, Entry, num_differing_bits, signatures_match, unpack_signatures
from grr_coca_search.filters import Filter, parse_filter
from grr_coca_search.relevance import (
    MIN_RELEVANCE,
    MIN_WORD_MATCH_RELEVANCE,
    RelevanceCurve,
    can_tell,
    hit_features,
    z_scores,
)
from grr_coca_search.store import Store

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Query:
    """Texts and images to search for, and texts to exclude.

    Attributes:
        texts: Texts to search for.
        images: Images to search for: paths, Pillow images, or pixel arrays if the model accepts these.
        without: Texts to exclude.
        weights: One weight per text. If this is empty, each text has weight 1. Each image has weight 1.
        like, unlike: Images of the index to search for, and to exclude, by their `Entry.name_hash`.

    Raises:
        UserError: If the query is empty, a text is empty, the number of weights differs from the number of texts, or a
            weight is not above 0.
    """

    texts: tuple[str, ...] = ()
    images: "tuple[str | Path | Image.Image | np.ndarray, ...]" = ()
    without: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    like: tuple[int, ...] = ()
    unlike: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.texts and not self.images and not self.like:
            raise UserError("the query is empty; pass words or an image to search for")
        for text in (*self.texts, *self.without):
            if not text.strip():
                raise UserError("a text of the query is empty or has only spaces; pass words")
        if self.weights and len(self.weights) != len(self.texts):
            raise UserError(
                f"got {len(self.weights)} {'weight' if len(self.weights) == 1 else 'weights'} for "
                f"{len(self.texts)} {'text' if len(self.texts) == 1 else 'texts'}; pass one weight per text, or none"
            )
        if any(not (weight > 0 and np.isfinite(weight)) for weight in self.weights):
            raise UserError("weights must be above 0; to exclude a text, use `without` (--without)")

    @property
    def words(self) -> str | None:
        """Text to search for in the full-text index.

        None if the query has anything other than texts to search for, or if these texts have weights.
        """
        has_others = self.images or self.without or self.weights or self.like or self.unlike
        if has_others:
            return None
        spelled = [text for text in self.texts if split_identifier(text) != text]  # identifiers as the user wrote them
        return " ".join([*map(split_identifier, self.texts), *spelled])

    @property
    def has_images(self) -> bool:
        """Whether images are searched for or excluded."""
        return bool(self.images or self.like or self.unlike)

    @property
    def query_terms(self) -> frozenset[str]:
        """Words to search for in the name, title, keywords and caption of a hit. Empty if the query has images."""
        return frozenset() if self.images or self.like else query_terms(" ".join(map(split_identifier, self.texts)))


FilesExist = Callable[[Iterable[Entry]], Mapping[str, bool]]
"""Function that returns whether the files of images exist, as a mapping from `Entry.file`."""


def files_exist(entries: Iterable[Entry]) -> dict[str, bool]:
    """Return whether the files of images exist, as a mapping from `Entry.file`."""
    return {entry.file: entry.is_there for entry in entries}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        n: Maximum number of hits.
        where: Filter that hits must match.
        hybrid: Whether to also use the full-text index, if the query has only texts.
        fold: Whether to merge near-duplicates into one hit.
        min_relevance: Minimum relevance of hits. If relevances are not valid, all hits are excluded.
        files_exist: Function that checks whether files exist. A server passes a function that does not wait long for
            stalled drives.
    """

    n: int
    where: str | None
    hybrid: bool
    fold: bool
    min_relevance: float = 0.0
    files_exist: FilesExist = files_exist


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Hit of a search.

    Attributes:
        path: Name of the image in the index.
        score: Cosine similarity between the image's embedding and the query.
        relevance: Probability that the image matches the query. It is valid only if `SearchResult.can_tell` is True.
        caption: Caption of the image.
        copies: Names of the image's near-duplicates.
        is_there: Whether the image's file still exists.
        entry: The image in the index.
        has_words: Whether the image's name, title and keywords, or its caption, contain all words of the query.
    """

    path: str
    score: float
    relevance: float
    caption: str
    copies: tuple[str, ...]
    is_there: bool
    entry: Entry
    has_words: bool = False


Verdict = Literal["likely", "unsure", "nothing"]
"""Verdict on the first hits: some of them match the query (`likely`), this is uncertain (`unsure`), or none of them
does (`nothing`)."""


_MIN_SPARE = 8
"""Minimum number of images that are ranked in addition to the requested hits, because some of the ranked images may be
near-duplicates. If a quarter of the number of hits is larger, that many additional images are ranked."""
_HITS_PER_CHUNK = 256
"""Number of hits whose hashes are compared at a time."""
NUM_LESS_LIKELY = 5
"""Number of consecutive less likely hits after which all remaining hits count as less likely."""
NUM_DECISIVE_HITS = 10
"""Number of first hits that determine whether any image matches the query."""


@dataclass(frozen=True, kw_only=True)
class SearchResult(Sequence[Hit]):
    """Hits of a query, best first.

    Attributes:
        hits: The hits, at most as many as were requested.
        vector: Embedding of the query.
        searched: Number of images in the index.
        can_tell: Whether relevances are valid, which requires `is_fitted`, a query without images, and a library whose
            images differ enough.
        is_fitted: Whether the relevance curve was fitted to this model or similar models.
        has_images: Whether the query has images. The curves were fitted only to queries of texts.
        nothing_below: Threshold of the verdict `nothing`; see `RelevanceCurve`.
        unknown: Texts of the query in which an adapted model does not know any word.
    """

    hits: tuple[Hit, ...]
    vector: np.ndarray
    searched: int
    can_tell: bool = True
    is_fitted: bool = True
    has_images: bool = False
    nothing_below: float = 0.0
    unknown: tuple[str, ...] = ()

    @property
    def why_no_relevance(self) -> str:
        """Reason why relevances are not valid. Empty if they are valid."""
        if self.can_tell:
            return ""
        if not self.is_fitted:
            return "relevance was not measured for models like this one"
        if self.has_images:
            return "relevance was not measured for queries with images"
        return "too few different images to estimate relevance"

    def at_least(self, min_relevance: float) -> "SearchResult":
        """Return the result without hits whose relevance is below `min_relevance`.

        If relevances are not valid, no hit remains.
        """
        kept = tuple(hit for hit in self.hits if hit.relevance >= min_relevance) if self.can_tell else ()
        return replace(self, hits=kept)

    @property
    def verdict(self) -> Verdict:
        """Verdict on whether the first hits match the query. It is `likely` if relevances are not valid.

        It is never `nothing` if the name, title, keywords or caption of one of these hits contain the query's words.
        """
        decisive = self.hits[:NUM_DECISIVE_HITS]
        best = max((hit.relevance for hit in decisive), default=0.0)
        if not self.can_tell or best >= MIN_RELEVANCE:
            return "likely"
        return "unsure" if best >= self.nothing_below or any(hit.has_words for hit in decisive) else "nothing"

    @property
    def num_likely(self) -> int:
        """Number of hits up to the last likely hit before `NUM_LESS_LIKELY` consecutive less likely hits.

        Likely and less likely hits may alternate, because the order of hits does not depend only on relevance. If
        relevances are not valid, or no hit is likely, all hits are counted.
        """
        last = 0
        for place, hit in enumerate(self.hits, 1):
            if hit.relevance >= MIN_RELEVANCE:
                last = place
            elif place - last >= NUM_LESS_LIKELY:
                break
        return last if self.can_tell and last else len(self.hits)

    @property
    def opening(self) -> str:
        """Beginning of the heading of the hits, to which the caller adds "of N images".

        It starts with a lower-case letter. It is empty if the first hits are likely.
        """
        if self.unknown:
            return f"the model was adapted to captions without the words of '{self.unknown[0]}'; the closest"
        if not self.can_tell:
            return f"{self.why_no_relevance}; the closest"
        if self.verdict == "unsure":
            return "uncertain matches; the closest"
        return "no good match; the closest" if self.verdict == "nothing" else ""

    def format_relevance(self, hit: Hit) -> str:
        """Format the relevance of a hit as a percentage, or as `?` if relevances are not valid."""
        return f"{hit.relevance:.0%}" if self.can_tell else "?"

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        """Return a hit, or several hits."""
        return self.hits[index]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)


class QueryModel(Protocol):
    """Interface through which searches use a model. `grr_coca_search.index.IndexModel` documents the methods."""

    @property
    def curve(self) -> RelevanceCurve | None:
        """Relevance curve of the model. None if the model does not have a curve."""

    def related_words(self, text: str) -> tuple[str, ...]:
        """Return words to search for in place of a text that the model does not know, closest first.

        The result is empty if the model knows the text.
        """

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of M texts, an array M E."""

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Return the embeddings of M captions, an array M E."""

    def embed_sample(self, captions: tuple[str, ...]) -> np.ndarray:
        """Return the embeddings of the captions of a sample, an array M E."""

    def embed_images(self, images: Sequence[Any]) -> np.ndarray:
        """Return the vectors with which to search for images that are similar to the given images, M E."""

    def image_queries(self, vectors: np.ndarray) -> np.ndarray:
        """Convert the embeddings of images to the vectors with which to search for similar images, M E."""

    def unknown_texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the texts in which an adapted model does not know any word. For other models, return no texts."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Images that were ranked for a query, best first. `hits_of` converts all or some of them to hits.

    Attributes:
        groups: For each ranked image, a list of the image and its near-duplicates.
        scores: Cosine similarities between the ranked images and the query.
        best: Embedding of the first image, or of the query if no image was ranked.
        vector: Embedding of the query.
        asked: Embeddings of the texts of the query.
        has_images: Whether the query has images, so that relevances are not valid.
        words: Words of the query; see `Query.query_terms`.
        sample, others: Embeddings of sampled images of the library, and of sampled captions.
        searched: Number of images in the index.
        unknown: Unknown texts; see `SearchResult`.
    """

    groups: list[list[Entry]]
    scores: np.ndarray
    best: np.ndarray
    vector: np.ndarray
    asked: np.ndarray
    has_images: bool
    words: frozenset[str]
    sample: np.ndarray
    others: np.ndarray
    searched: int
    unknown: tuple[str, ...] = ()


def search_store(query: Query, store: Store, model: QueryModel, options: SearchOptions) -> SearchResult:
    """Search a store, and return at most `options.n` hits with their relevances.

    Raises:
        UserError: If the filter is invalid, an image of the query cannot be read or is not in the index, the query
            excludes everything that it searches for, or the store cannot be read.
    """
    found = hits_of(rank_images(query, store, model, options), model)
    return found.at_least(options.min_relevance) if options.min_relevance > 0 else found


def rank_images(query: Query, store: Store, model: QueryModel, options: SearchOptions) -> Ranking:
    """Rank the images of a store, and keep at most `options.n` groups of near-duplicates.

    Raises:
        UserError: For the same reasons as `search_store`.
    """
    tree = None if options.where is None else parse_filter(options.where, store.columns())
    texts = [*map(split_identifier, query.texts), *map(split_identifier, query.without)]
    related = [model.related_words(text) for text in texts]
    embedded = _embed_meanings(texts, related, model) if texts else np.empty((0, 0))
    also = tuple(word for words in related[: len(query.texts)] for word in words[:WORDS_ALSO])
    included = list(model.embed_images(query.images)) if query.images else []
    with store.snapshot():
        sample = store.sample()
        like, unlike = (_vectors_of_index(draws, store, model) for draws in (query.like, query.unlike))
        vector = _query_vector(query, embedded, included + like, unlike, sample.vectors)
        search = _Search(
            query=query, also=also, store=store, where=tree, options=options, vector=vector, sample=sample.vectors
        )
        groups, vectors = search.groups()
        searched = len(store)
    return Ranking(
        groups=groups,
        scores=vectors @ vector,
        best=vectors[0] if len(vectors) else vector,
        vector=vector,
        asked=embedded[: len(query.texts)],
        has_images=query.has_images,
        words=query.query_terms,
        sample=sample.vectors,
        others=model.embed_sample(sample.captions),
        searched=searched,
        unknown=model.unknown_texts(texts[: len(query.texts)]),
    )


def hits_of(
    ranking: Ranking, model: QueryModel, first: int = 0, last: int | None = None, files_exist: FilesExist = files_exist
) -> SearchResult:
    """Return the hits of a ranking with their relevances.

    By default, all hits are returned. `first` and `last` select those from position `first` up to, but excluding,
    position `last`.
    """
    groups, scores = ranking.groups[first:last], ranking.scores[first:last]
    is_fitted = model.curve is not None
    curve = None if ranking.has_images else model.curve
    if not groups:
        return SearchResult(
            hits=(),
            vector=ranking.vector,
            searched=ranking.searched,
            can_tell=curve is not None,
            is_fitted=is_fitted,
            has_images=ranking.has_images,
            unknown=ranking.unknown,
        )
    relevances = np.zeros(len(groups))
    is_in_user_texts = np.array([has_words(ranking.words, best.user_texts) for best, *_ in groups])
    is_in_caption = np.array([has_words(ranking.words, [best.caption]) for best, *_ in groups])
    if curve is not None:
        captions = model.embed_captions([best.caption for best, *_ in groups])
        library = {"asked": ranking.asked, "captions": captions, "others": ranking.others}
        relevances = curve.relevances(hit_features(ranking.vector, scores, ranking.sample, **library))
        relevances[is_in_caption] = np.maximum(relevances[is_in_caption], curve.captioned)
        relevances[is_in_user_texts] = np.maximum(relevances[is_in_user_texts], MIN_WORD_MATCH_RELEVANCE)
    there = files_exist([best for best, *_ in groups])
    hits = tuple(
        Hit(
            path=best.name,
            score=round(float(score), 6),
            relevance=round(float(relevance), 4),
            caption=best.caption,
            copies=tuple(copy.name for copy in copies),
            is_there=there[best.file],
            entry=best,
            has_words=bool(has),
        )
        for (best, *copies), score, relevance, has in zip(
            groups, scores, relevances, is_in_user_texts | is_in_caption, strict=True
        )
    )
    return SearchResult(
        hits=hits,
        vector=ranking.vector,
        searched=ranking.searched,
        can_tell=curve is not None and can_tell(ranking.best, ranking.sample, ranking.asked, ranking.others),
        is_fitted=is_fitted,
        has_images=ranking.has_images,
        nothing_below=0.0 if curve is None else curve.nothing_below,
        unknown=ranking.unknown,
    )


def _vectors_of_index(draws: Sequence[int], store: Store, model: QueryModel) -> list[np.ndarray]:
    """Return the query vectors of images of the index, which are identified by their `Entry.name_hash`.

    Raises:
        UserError: If an image is not in the index.
    """
    ids = store.ids_of(draws)
    if not ids.keys() >= set(draws):
        raise UserError("an image of the query is no longer in the index; choose another image")
    places = [ids[draw] for draw in draws]
    return list(model.image_queries(store.vectors(places))) if places else []


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Inputs of a ranking.

    Attributes:
        also: Additional words for the full-text index.
        vector: Embedding of the query.
        sample: Embeddings of sampled library images.
    """

    query: Query
    also: tuple[str, ...]
    store: Store
    where: Filter | None
    options: SearchOptions
    vector: np.ndarray
    sample: np.ndarray

    def groups(self) -> tuple[list[list[Entry]], np.ndarray]:
        """Return at most `n` groups, best first, and the embeddings of their first images.

        A group is an image and its near-duplicates. Without `fold`, each group has one image.
        """
        n = self.options.n
        count = n + max(_MIN_SPARE, n // 4) if self.options.fold else n
        while True:
            ids = self._rank_ids(count)
            vectors, entries = self.store.vectors(ids), self.store.entries(ids)
            if not self.options.fold:
                return [[entry] for entry in entries[:n]], vectors[:n]
            places = group_hits(vectors, entries)
            if len(places) > n or len(ids) < count:
                places = places[:n]
                there = self.options.files_exist(
                    [entries[place] for group in places if len(group) > 1 for place in group]
                )
                places = [_move_existing_first(group, entries, there) for group in places]
                best = vectors[[group[0] for group in places]]
                return [[entries[place] for place in group] for group in places], best
            count *= 2  # because of many near-duplicates, there were too few groups for `n` hits

    def _rank_ids(self, count: int) -> list[int]:
        query, store, vector = self.query, self.store, self.vector
        if not self.options.hybrid or query.words is None:
            return [match.id for match in store.nearest(vector, count, self.where)]
        depth = -(-count // FUSED_AT_ONCE) * FUSED_AT_ONCE
        nearest = [match.id for match in store.nearest(vector, depth, self.where)]
        words = " ".join([query.words, *self.also])
        by_words = store.word_matches(words, SCORES_OF_WORDS * depth, self.where)
        if not by_words:
            return nearest[:count]
        rarity_offset = math.log(max(1.0, MIN_IMAGES / max(1, len(store))))
        found: dict[int, None] = {}
        for start in range(0, depth, FUSED_AT_ONCE):
            end = start + FUSED_AT_ONCE
            ids = sorted({*nearest[start:end], *(match.id for match in by_words[start:end])} - found.keys())
            scored = {match.id: match.score + rarity_offset for match in by_words[: SCORES_OF_WORDS * end]}
            scores = z_scores(vector, store.vectors(ids) @ vector, self.sample)
            scores += WORD_WEIGHT * np.array([scored.get(identity, 0.0) for identity in ids])
            matched = [identity for identity in ids if identity in scored]
            name_ranks = dict(
                zip(matched, (_name_match_rank(query, entry) for entry in store.entries(matched)), strict=True)
            )
            tiers = np.array([name_ranks.get(identity, 0) for identity in ids])
            found |= dict.fromkeys(ids[place] for place in np.lexsort((-scores, -tiers)))
        return list(found)[:count]


def group_hits(vectors: np.ndarray, entries: Sequence[Entry]) -> list[list[int]]:
    """Group N hits by near-duplicates.

    Each group is a list of positions, of which the first is the best hit. Groups are sorted by their best hits.

    Args:
        vectors: Embeddings of the hits, best first, N E.
        entries: Entries of the images, N.
    """
    hashes = np.array([entry.phash for entry in entries], np.int64)
    signatures = unpack_signatures(entries)

    def is_copy(one: int, other: int) -> bool:
        if entries[one].digest and entries[one].digest == entries[other].digest:
            return True
        return (
            bool(signatures_match(signatures[one], signatures[other])) and vectors[other] @ vectors[one] >= MIN_COSINE
        )

    groups: list[list[int]] = []
    group_of: dict[int, int] = {}  # number of each group, by the position of the group's best hit
    for start in range(0, len(hashes), _HITS_PER_CHUNK):
        chunk = np.arange(start, min(start + _HITS_PER_CHUNK, len(hashes)))
        # A hit is compared only with the best hit of each group, because thousands of hits may be near-duplicates.
        earlier = np.concatenate([np.array(list(group_of), np.int64), chunk])
        near = num_differing_bits(hashes[chunk, None], hashes[None, earlier]) <= MAX_BITS
        for place, row in zip(chunk.tolist(), near, strict=True):
            others = (other for other in earlier[row].tolist() if other in group_of)
            first = next((other for other in others if is_copy(place, other)), None)
            if first is None:
                group_of[place] = len(groups)
                groups.append([place])
            else:
                groups[group_of[first]].append(place)
    return groups


def _move_existing_first(group: list[int], entries: Sequence[Entry], there: Mapping[str, bool]) -> list[int]:
    """Reorder a group so that an image whose file exists comes first.

    After a folder has been renamed, old paths must not hide the new paths.
    """
    if len(group) == 1:
        return group
    best = next((place for place in group if there[entries[place].file]), group[0])
    return [best, *(place for place in group if place != best)]


def _name_match_rank(query: Query, entry: Entry) -> int:
    """Return how well the name of an image matches the query. Images with higher values are ranked first.

    The value is 3 if the query consists of the image's set and name, 2 if only the name matches, 1 if the name, title
    and keywords together contain all words of the query, and otherwise 0. A query of several texts gets at most 1.
    """
    name = NameQuery.of(query.texts[0])
    if len(query.texts) == 1 and name.matches_name(entry.title):
        return 3 if name.prefix and name.prefix in entry.sets else 2
    return int(has_words(query.query_terms, entry.user_texts))


WORD_WEIGHT = 0.25
"""Weight of BM25 relative to an image's z-score. It was chosen on the split `val` (`benchmarks/search.md`)."""
MIN_IMAGES = 1000
"""Minimum size of the library that is assumed for BM25 scores. These scores grow with the logarithm of a word's rarity,
and in a small library, no word is rare.
"""
FUSED_AT_ONCE = 100
"""Number of images of each ranking (by embeddings and by words) that are merged at a time. The rankings are merged in
parts of a fixed size, because the first hits must not depend on the number of requested hits."""
SCORES_OF_WORDS = 10
"""Factor by which the number of images with word scores exceeds the number of hits. Otherwise, some images that contain
a common word would not get a word score.
"""


WORDS_ALSO = 3
"""Number of related words that are added to the full-text query for each text that the model does not know."""


# --- The vector of a query

MIN_DEVIATION = 1e-3
"""Minimum standard deviation by which the embedding of a part of the query is divided."""
WITHOUT_WEIGHT = 0.5
"""Weight with which a text after `--without` is subtracted. Other parts of a query have weight 1 by default."""


def _embed_meanings(texts: Sequence[str], related: Sequence[tuple[str, ...]], model: QueryModel) -> np.ndarray:
    """Embed texts, M E. A text that has related words gets the normalized mean of the embeddings of these words."""
    groups = [words or (text,) for text, words in zip(texts, related, strict=True)]
    different = list(dict.fromkeys(word for words in groups for word in words))
    vectors = dict(zip(different, model.embed_texts(different), strict=True))
    means = [np.mean([vectors[word] for word in words], axis=0) for words in groups]
    lengths = [np.linalg.norm(mean) if len(words) > 1 else 1.0 for mean, words in zip(means, groups, strict=True)]
    return np.array([mean / length for mean, length in zip(means, lengths, strict=True)], np.float32)


def _query_vector(
    query: Query, texts: np.ndarray, included: Sequence[np.ndarray], excluded: Sequence[np.ndarray], sample: np.ndarray
) -> np.ndarray:
    """Return the unit vector whose nearest images match a query: the weighted sum of the embeddings of its parts.

    Images of the library have much larger cosine similarities with an image than with a text. The embedding of each
    part is therefore divided by the standard deviation of its dot products with a sample of the library. It then
    measures how far an image stands out from the others. Because the result is a single vector, any store can find its
    nearest images.

    Args:
        query: The query.
        texts: Embeddings of the texts to search for, followed by those of the texts to exclude.
        included: Embeddings of images to search for.
        excluded: Embeddings of images to exclude.
        sample: Embeddings of sampled library images, N E.

    Raises:
        UserError: If the parts cancel each other out, because the query excludes everything that it requests.
    """
    weights = [*(query.weights or (1.0,) * len(query.texts)), *(-WITHOUT_WEIGHT,) * len(query.without)]
    parts = [*zip(weights, texts, strict=True)]
    parts += [(1.0, vector) for vector in included] + [(-WITHOUT_WEIGHT, vector) for vector in excluded]
    if len(parts) == 1:
        return parts[0][1]
    total = np.zeros_like(parts[0][1])
    for weight, embedding in parts:
        deviation = float((sample @ embedding).std()) if len(sample) > 1 else 1.0
        total = total + weight / max(deviation, MIN_DEVIATION) * embedding
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise UserError("the query excludes everything that it searches for; exclude fewer texts (--without) or images")
    return (total / length).astype(np.float32)


# --- Words of a query. The page does the same in `words.js`

_IDENTIFIER = re.compile(r"(?:([^\s:]+):)?([^\s:]+)")


class NameQuery(NamedTuple):
    """Query that may be the name of an image.

    `prefix` is the name of the icon set before a colon, if the query has one, and otherwise empty. `words` are the
    words of the image's name.
    """

    prefix: str
    words: tuple[str, ...]

    @classmethod
    def of(cls, query: str) -> "NameQuery":
        """Return the name that a query such as `mdi:home`, `ShoppingCart` or `shopping cart` requests."""
        found = _IDENTIFIER.fullmatch(query.strip())
        prefix, name = found.groups("") if found else ("", query)
        return cls(prefix.lower(), tuple(words_of(name)))

    def matches_name(self, name: str) -> bool:
        """Return whether the name of an image matches, in any spelling. A set before a colon in `name` is ignored."""
        return bool(self.words) and tuple(words_of(name.rpartition(":")[2])) == self.words


def split_identifier(query: str) -> str:
    """Split a query that is an identifier (`shopping-cart`, `ShoppingCart`, `mdi:home`) into words.

    Other queries are unchanged.
    """
    name = NameQuery.of(query)
    is_identifier = len(query.split()) == 1 and name.words and words_of(query) != [query.strip().lower()]
    return " ".join(name.words) if is_identifier else query


def query_terms(query: str) -> frozenset[str]:
    """Return the content words of a query, in the singular, for `has_words`."""
    words = NameQuery.of(query).words
    return frozenset(map(_singular, [word for word in words if word not in FUNCTION_WORDS] or words))


def has_words(asked: frozenset[str], texts: Iterable[str]) -> bool:
    """Return whether texts together contain all words of the query, in the singular or plural.

    The result is False if the query has no words.
    """
    found = {_singular(word) for text in texts for word in (*words_of(text), *text.lower().split())}
    return bool(asked) and asked <= found


def _singular(word: str) -> str:
    """Remove an English plural ending from a word.

    Words that only look like plurals are also shortened, so apply this function to both sides of a comparison.
    """
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return singular(word)


# --- Related words


class Thesaurus:
    """Words that a model knows for words and phrases that it does not know, such as `delete` for "throw away".

    A model that was trained on icon names knows many objects but few actions, because most icon names describe objects.
    The related words were found in advance with a sentence encoder (`scripts/fit_thesaurus.py`). They are stored in a
    text file next to the weights. Each line has an unknown word or phrase and its related words, closest first,
    separated by tabs. The lines are sorted.

    Args:
        lines: Content of the file.
    """

    def __init__(self, lines: str) -> None:
        self._lines = lines.rstrip("\n") + "\n"

    @classmethod
    def of_model(cls, folder: Path) -> "Thesaurus":
        """Read the related words of the model in a folder. The thesaurus is empty if the folder does not have the file.

        Raises:
            UserError: If the file cannot be read.
        """
        path = folder / THESAURUS
        try:
            return cls(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls("")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read as UTF-8 text ({error}); restore this file of the model"
            ) from error

    def related(self, text: str) -> tuple[str, ...]:
        """Return known words that are close to a text, closest first.

        The result is empty if the model knows the text, or if the file does not contain the text.
        """
        entry = " ".join(text.lower().split())
        low, high = 0, len(self._lines)
        while low < high:  # the lines are sorted, and `low` is at the beginning of a line
            start = max(low, self._lines.rfind("\n", low, (low + high) // 2) + 1)
            end = self._lines.find("\n", start)
            found, *words = self._lines[start:end].split("\t")
            if found == entry:
                return tuple(words)
            low, high = (end + 1, high) if found < entry else (low, start)
        return ()
