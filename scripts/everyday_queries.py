"""Whether icons are found by an everyday word that is not their name: nDCG@10 of 300 queries.

    python scripts/everyday_queries.py MODEL                  # on the pictures of the six test families
    python scripts/everyday_queries.py MODEL --split val      # 78 queries on `val`, to choose by
    python scripts/everyday_queries.py --make                 # how the queries are made

The queries lie in `everyday_queries.jsonl`. They were chosen by this script before any result was seen: a query is a
WordNet synonym of a name. Right are the pictures with such a name. A picture whose name only contains it ("car crash"
for "car") counts neither as right nor as wrong. If the corpus changes, `--make` keeps the queries that are still
possible, so that figures can be compared.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from grr_coca.cli import exit_code
from wordnet import Synset, WordNet, is_common

QUERIES = Path(__file__).with_suffix(".jsonl")
PICTURES = {"test": "cache:icons/test_family_*-*.tar", "val": "cache:icons/val-*.tar"}
MAX_QUERIES = {"test": 300, "val": 100}
MAX_OF_A_SYNSET = 2
"""Queries of a meaning, of each degree of sureness."""


@dataclass(frozen=True)
class EverydayQuery:
    """`synset`: key of the meaning that the query shares with the `names` that are right."""

    split: str
    text: str
    synset: str
    names: tuple[str, ...]


def main() -> None:
    """Measure a model and print a table, or make the queries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a name or a folder")
    parser.add_argument("--split", choices=PICTURES, default="test", help="pictures to search and their queries")
    parser.add_argument("--make", action="store_true", help="choose the queries anew and write them")
    options = parser.parse_args()
    if options.make == (options.model is not None):
        parser.error("give a model, or --make")
    if options.make:
        make()
    else:
        measure(options.model, options.split)


# --- The list


def read_queries(path: Path) -> list[EverydayQuery]:
    """The queries of all splits."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [EverydayQuery(**{**row, "names": tuple(row["names"])}) for row in rows]


def make() -> None:
    """Choose the queries of both splits from the corpus, those of the list first, and write them."""
    from grr_coca.common.files import user_cache
    from grr_coca.data.sources.open import open_source

    wordnet = WordNet.from_package(user_cache() / "packages")
    listed = {(query.text, query.synset) for query in read_queries(QUERIES)} if QUERIES.exists() else set()
    chosen: list[EverydayQuery] = []
    for split, path in PICTURES.items():
        source = open_source(path)
        names = {source.caption(index) for index in range(len(source))}
        found = choose(split, names, wordnet, {query.synset for query in chosen})
        found.sort(key=lambda query: (query.text, query.synset) not in listed)
        print(f"{split}: {len(names):,} names, {len(found)} possible queries, {MAX_QUERIES[split]} wanted at most")
        chosen += found[: MAX_QUERIES[split]]
    chosen.sort(key=lambda query: (query.split, query.text))
    QUERIES.write_text("".join(json.dumps(asdict(query)) + "\n" for query in chosen), encoding="utf-8")


def choose(split: str, names: Collection[str], wordnet: WordNet, taken: Collection[str] = ()) -> list[EverydayQuery]:
    """All possible queries for pictures of these names, the surest first, and equally sure ones in an order by hash.

    A name counts for what it mostly means, and so does a query. A query is no name itself, and shares no word with the
    names that are right. Surest are words that mean the same in half of their uses, then in a third; at last come
    words with one meaning that WordNet's tagged texts never use.

    Args:
        split: of the queries.
        names: of the pictures.
        wordnet: all synsets.
        taken: keys of synsets that have queries already.
    """
    found: dict[str, tuple[int, EverydayQuery]] = {}
    for tier, (share, is_used) in enumerate(((1 / 2, True), (1 / 3, True), (1 / 2, False))):
        by_synset: dict[str, tuple[Synset, list[str]]] = {}
        for name in sorted(names):
            synset = wordnet.meaning(name, share) if is_common(name) else None
            if synset is not None and synset.key not in taken:
                by_synset.setdefault(synset.key, (synset, []))[1].append(name)
        for key, (synset, right) in by_synset.items():
            words = [
                lemma
                for lemma in synset.counts
                if is_common(lemma)
                and (wordnet.count[lemma] > 0) == is_used
                and lemma not in names
                and lemma not in found
                and wordnet.meaning(lemma, share) == synset
                and not any(_share_a_word(lemma, name) for name in right)
            ]
            for word in sorted(words, key=_by_hash)[:MAX_OF_A_SYNSET]:
                found[word] = tier, EverydayQuery(split, word, key, tuple(right))
    return [query for _, query in sorted(found.values(), key=lambda entry: (entry[0], _by_hash(entry[1].text)))]


def _by_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _share_a_word(first: str, second: str) -> bool:
    """True if words of both begin with the same four letters, as forms and spellings of one word mostly do, or if both
    are equal without spaces ("ashbin", "ash bin")."""
    begin_alike = {word[:4] for word in _words(first)} & {word[:4] for word in _words(second)}
    return bool(begin_alike) or "".join(_words(first)) == "".join(_words(second))


# --- The measure


def pictures_of(query: EverydayQuery, names: Sequence[str]) -> tuple[frozenset[int], frozenset[int]]:
    """Numbers of the pictures that are right, and of those that neither count as right nor as wrong.

    Args:
        query: the query.
        names: of all pictures.
    """
    right = frozenset(number for number, name in enumerate(names) if name in query.names)
    parts = [set(_words(name)) for name in query.names]
    near = frozenset(number for number, name in enumerate(names) if any(part <= set(_words(name)) for part in parts))
    return right, near - right


def measure(model_name: str, split: str) -> None:
    """Print nDCG@10 with its interval, by kind of search."""
    import grr_coca
    from grr_coca.common.errors import UserError
    from grr_coca.common.files import in_cache
    from grr_coca.evaluate.intervals import Measure
    from grr_coca.search.embedded.embedded_store import TITLE_WEIGHT
    from icon_search import TOP, LexicalIndex, Query, fuse, ndcg, read_icons

    queries = [query for query in read_queries(QUERIES) if query.split == split]
    icons = read_icons(in_cache(PICTURES[split]))
    names = [icon.name for icon in icons]
    model = grr_coca.load(model_name)
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
    print(f"{len(queries)} queries in everyday words among {len(icons):,} pictures of {split}, nDCG@{TOP}:")
    for name, values in scores.items():
        value, low, high = Measure.mean(np.array(values)).interval()
        print(f"  {name:<24} {value:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    sys.exit(exit_code(main))
