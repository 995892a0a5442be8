"""Search for icons by words that their file names do not hold: a model, lexical search (BM25), and both fused.

The pictures are a split of `icons` whose shards carry tags. A query is a tag; right are the pictures that have it.
One of two tables takes only pictures whose name shares no word with the query. There, lexical search can find something
by the stems of words alone (SQLite's Porter stemmer). Both are fused as `grr-coca search` does, but without captions.
"""

import hashlib
import io
import json
import sqlite3
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from grr_coca.data.sources.open import find_files
from grr_coca.evaluate.intervals import Measure
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint_files import Figure
from grr_coca_search.embedded.embedded_store import TITLE_WEIGHT
from grr_coca_search.query import WORD_WEIGHT
from grr_coca_search.relevance import z_scores

TOP = 10
MAX_RIGHT = 20
"""Tags of more pictures than these say too little to search with."""

NUM_QUERIES = 1_000


@dataclass(frozen=True)
class Icon:
    """A picture with the words of its file name and its tags."""

    name: str
    tags: frozenset[str]
    image: Image.Image


@dataclass(frozen=True)
class Query:
    """A tag, the pictures that are right, and those that neither count as right nor as wrong."""

    text: str
    right: frozenset[int]
    left_out: frozenset[int] = frozenset()


def search_figures(model: ImageTextModel, shards: str) -> dict[str, dict[str, Figure]]:
    """nDCG@10 with its interval over queries, by kind of query and then by kind of search."""
    icons = read_icons(shards)
    vectors = model.embed_images([icon.image for icon in icons])
    tables = {"tags with no word of the name": hidden_queries(icons), "all tags": all_queries(icons)}
    lexical = LexicalIndex([icon.name for icon in icons])
    found = {}
    for title, queries in tables.items():
        texts = model.embed_texts([query.text for query in queries])
        ours = [np.argsort(-row, kind="stable").tolist() for row in texts @ vectors.T]
        theirs = [list(lexical.search(query.text)) for query in queries]
        fused = [
            fuse(text, vectors, lexical.search(query.text, TITLE_WEIGHT))
            for text, query in zip(texts, queries, strict=True)
        ]
        for name, rankings in (("ours", ours), ("BM25", theirs), ("fused", fused)):
            scores = np.array([ndcg(ranking, query) for ranking, query in zip(rankings, queries, strict=True)])
            figure = Figure(*Measure.mean(scores).interval())
            found.setdefault(f"search, {title}", {})[f"nDCG@10 {name}"] = figure
    return found


def read_icons(shards: str) -> list[Icon]:
    """Return the pictures of shards of `icons`."""
    icons = []
    for path in find_files(shards)[0]:
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in (name for name in files if name.endswith(".webp")):
            key = name.removesuffix(".webp")
            tags = json.loads(files[f"{key}.json"])["tags"] if f"{key}.json" in files else []
            image = Image.open(io.BytesIO(files[name])).convert("RGB")
            icons.append(Icon(files[f"{key}.txt"].decode(), frozenset(tags), image))
    return icons


def all_queries(icons: list[Icon]) -> list[Query]:
    """Tags of few pictures, drawn by hash."""
    right: dict[str, set[int]] = {}
    for number, icon in enumerate(icons):
        for tag in icon.tags:
            right.setdefault(tag, set()).add(number)
    return _drawn([Query(tag, frozenset(found)) for tag, found in right.items() if len(found) <= MAX_RIGHT])


def hidden_queries(icons: list[Icon]) -> list[Query]:
    """Tags with the pictures whose names share no word with them; the other pictures of the tag do not count."""
    queries = []
    right: dict[str, set[int]] = {}
    named: dict[str, set[int]] = {}
    for number, icon in enumerate(icons):
        for tag in icon.tags:
            shares = set(tag.split()) & set(icon.name.split())
            (named if shares else right).setdefault(tag, set()).add(number)
    for tag, found in right.items():
        if len(found) <= MAX_RIGHT:
            queries.append(Query(tag, frozenset(found), frozenset(named.get(tag, ()))))
    return _drawn(queries)


def _drawn(queries: list[Query]) -> list[Query]:
    return sorted(queries, key=lambda query: hashlib.sha256(query.text.encode()).digest())[:NUM_QUERIES]


class LexicalIndex:
    """BM25 over names, as SQLite's full-text search has it, with Porter's stemmer."""

    def __init__(self, names: list[str]) -> None:
        self._database = sqlite3.connect(":memory:")
        self._database.execute("CREATE VIRTUAL TABLE names USING fts5(name, tokenize = 'porter unicode61')")
        self._database.executemany("INSERT INTO names(rowid, name) VALUES (?, ?)", enumerate(names))

    def search(self, text: str, weight: float = 1.0) -> dict[int, float]:
        """The names that share a stem with a text, with their scores, best first. Each word counts `weight` times."""
        words = " OR ".join(f'"{word}"' for word in text.replace('"', " ").split())
        if not words:
            return {}
        query = "SELECT rowid, -bm25(names, ?) AS score FROM names WHERE names MATCH ? ORDER BY score DESC, rowid"
        return dict(self._database.execute(query, (weight, words)))


def fuse(query: np.ndarray, vectors: np.ndarray, by_words: Mapping[int, float]) -> list[int]:
    """Return all pictures, by how far they stand out and by the scores of their names, together."""
    scores = z_scores(query, vectors @ query, vectors)
    scores += WORD_WEIGHT * np.array([by_words.get(number, 0.0) for number in range(len(vectors))])
    return np.argsort(-scores, kind="stable").tolist()


def ndcg(ranking: list[int], query: Query) -> float:
    """Normalized discounted cumulative gain of the first ten, right or wrong (Järvelin and Kekäläinen, 2002)."""
    shown = [number for number in ranking if number not in query.left_out][:TOP]
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    gains = sum(discount for number, discount in zip(shown, discounts, strict=False) if number in query.right)
    return float(gains / discounts[: min(TOP, len(query.right))].sum())
