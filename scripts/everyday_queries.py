"""Whether icons are found by an everyday word that is not their name: nDCG@10 of 300 queries.

    python scripts/everyday_queries.py MODEL                  # on the pictures of the six test families
    python scripts/everyday_queries.py MODEL --split val      # 78 queries on `val`, to choose by

The queries lie in `everyday_queries.jsonl`. A query is a WordNet synonym of a name. They were chosen by the script of
commit `a84b5aca` before any result was seen. Right are the pictures with such a name. A picture whose name only
contains it ("car crash" for "car") counts neither as right nor as wrong.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import grr_coca
from grr_coca.cli import exit_code
from grr_coca.common.errors import UserError
from grr_coca.common.files import expand_cache_prefix
from grr_coca.evaluate.intervals import Measure
from grr_coca_search.embedded.embedded_store import TITLE_WEIGHT
from icon_search import TOP, LexicalIndex, Query, fuse, ndcg, read_icons

QUERIES = Path(__file__).with_suffix(".jsonl")
PICTURES = {"test": "cache:icons/test_family_*-*.tar", "val": "cache:icons/val-*.tar"}


@dataclass(frozen=True)
class EverydayQuery:
    """`synset`: key of the meaning that the query shares with the `names` that are right."""

    split: str
    text: str
    synset: str
    names: tuple[str, ...]


def main() -> None:
    """Measure a model and print nDCG@10 with its interval, by kind of search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a folder")
    parser.add_argument("--split", choices=PICTURES, default="test", help="pictures to search and their queries")
    options = parser.parse_args()
    queries = [query for query in read_queries(QUERIES) if query.split == options.split]
    icons = read_icons(expand_cache_prefix(PICTURES[options.split]))
    names = [icon.name for icon in icons]
    model = grr_coca.load(options.model)
    vectors = np.asarray(model.embed_images([icon.image for icon in icons]))
    texts = np.asarray(model.embed_texts([query.text for query in queries]))
    lexical = LexicalIndex(names)
    scores: dict[str, list[float]] = {"embeddings": [], "words of names (BM25)": [], "both": []}
    for query, text in zip(queries, texts, strict=True):
        wanted = Query(query.text, *pictures_of(query, names))
        if not wanted.right:
            raise UserError(f"no picture has a name of the query {query.text!r}; build the corpus as it is pinned")
        by_embedding = np.argsort(-(vectors @ text), kind="stable").tolist()
        both = fuse(text, vectors, lexical.search(query.text, TITLE_WEIGHT))
        rankings = (by_embedding, list(lexical.search(query.text)), both)
        for values, ranking in zip(scores.values(), rankings, strict=True):
            values.append(ndcg(ranking, wanted))
    print(f"{len(queries)} queries in everyday words among {len(icons):,} pictures of {options.split}, nDCG@{TOP}:")
    for name, values in scores.items():
        value, low, high = Measure.mean(np.array(values)).interval()
        print(f"  {name:<24} {value:.3f} ({low:.3f} to {high:.3f})")


def read_queries(path: Path) -> list[EverydayQuery]:
    """Return the queries of all splits."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [EverydayQuery(**{**row, "names": tuple(row["names"])}) for row in rows]


def pictures_of(query: EverydayQuery, names: Sequence[str]) -> tuple[frozenset[int], frozenset[int]]:
    """Numbers of the pictures that are right, and of those that neither count as right nor as wrong.

    Args:
        query: the query.
        names: of all pictures.
    """
    right = frozenset(number for number, name in enumerate(names) if name in query.names)
    parts = [_words(name) for name in query.names]
    near = frozenset(number for number, name in enumerate(names) if any(part <= _words(name) for part in parts))
    return right, near - right


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


if __name__ == "__main__":
    sys.exit(exit_code(main))
