"""Whether `search` finds icons better than `search --no-hybrid` does: nDCG@10 on tags, by the index itself.

    python scripts/icon_hybrid.py MODEL

The pictures of Tabler become files that are called what they are called there, and an index is made of them. Queries
are tags, as in `icon_search.py`. Three searches answer each: by embeddings, by the words of captions and file names
(BM25), and both fused, which is the default. Intervals are of 95 %; the last line is the mean of the difference that
fusing makes to each query.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from grr_coca import Index
from grr_coca.cli import exit_code
from grr_coca.common.files import in_cache
from grr_coca.evaluate.intervals import Measure
from icon_search import TOP, Icon, Query, all_queries, hidden_queries, ndcg, read_icons

TABLER = "cache:icons/test_family_tabler-*.tar"
Scores = dict[str, np.ndarray]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a folder")
    options = parser.parse_args()
    icons = read_icons(in_cache(TABLER))
    with tempfile.TemporaryDirectory() as place, Index.open(f"{place}/index", options.model, create=True) as index:
        index.add(save(icons, Path(place) / "icons"))
        tables = {"tags with no word of the name": hidden_queries(icons), "all tags": all_queries(icons)}
        for title, queries in tables.items():
            print(f"{title}, {len(queries)} queries among {len(icons)} pictures, nDCG@{TOP}:")
            scores = searched(index, queries)
            scores["difference by fusing"] = scores["--hybrid"] - scores["embeddings"]
            for name, values in scores.items():
                value, low, high = Measure.mean(values).interval()
                print(f"  {name:<28} {value:.3f} ({low:.3f} to {high:.3f})", flush=True)


def save(icons: list[Icon], folder: Path) -> Path:
    """Files with the names of icons, each in a folder of its number, because names may be equal."""
    for number, icon in enumerate(icons):
        place = folder / str(number)
        place.mkdir(parents=True)
        icon.image.save(place / f"{icon.name.replace('/', ' ').replace(' ', '-')}.png")
    return folder


def searched(index: Index, queries: list[Query]) -> Scores:
    """nDCG@10 of each query, by kind of search."""
    found: dict[str, list[float]] = {"embeddings": [], "words of captions and names": [], "--hybrid": []}
    for query in queries:
        count = TOP + len(query.left_out)
        rankings = [
            [hit.entry.folder for hit in index.search(query.text, count, hybrid=False, fold=False)],
            by_words(index, query.text, count),
            [hit.entry.folder for hit in index.search(query.text, count, fold=False)],
        ]
        for values, ranking in zip(found.values(), rankings, strict=True):
            values.append(ndcg([int(number) for number in ranking], query))
    return {name: np.array(values) for name, values in found.items()}


def by_words(index: Index, text: str, count: int) -> list[str]:
    """Folders of the pictures whose captions and names match best."""
    with index.store.snapshot():
        matches = index.store.word_matches(text, count)
        return [entry.folder for entry in index.store.entries([match.id for match in matches])]


if __name__ == "__main__":
    sys.exit(exit_code(main))
