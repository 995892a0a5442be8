"""How often the relevance of a search is right, with queries for what is and is not in a library.

    python benchmarks/search_relevance.py [--fit]

The captions of a split are halved at random: the drawings of one half are the library, and the captions of both are
queries. The splits are of `pictograms` and of `icons` (after `python scripts/build_datasets icons`); the model is the
one that is used where none is named. Writes `results/search_relevance.json`. With `--fit`, it draws other halves and
prints the three numbers of the curve that fit them best.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from machine import machine, parse, parser_of
from scipy.optimize import minimize

import grr_coca
from grr_coca.data.sources.open import open_source
from grr_coca.files import in_cache
from grr_coca.inference.model import ImageTextModel
from grr_coca.registry import DEFAULT
from grr_coca.search.relevance import MIN_RELEVANCE, OFFSET, PER_AGREEMENT, PER_DEVIATION, evidence, relevances

PICTOGRAMS = Path(__file__).parents[1] / "datasets" / "pictograms"
SPLITS = {
    "test": str(PICTOGRAMS / "test-*.tar"),
    "test_style": str(PICTOGRAMS / "test_style-*.tar"),
    "test_family_tabler": "cache:icons/test_family_tabler-*.tar",
    "test_family_carbon": "cache:icons/test_family_carbon-*.tar",
}
SIZES = (10, 50, None)
BANDS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0)
QUERIES, LOOKED_AT, CAPTIONS, SAMPLE = 150, 10, 64, 4096
MEASURED, FITTED = 1, 2
"""Seeds of the halves."""


class Split:
    """Embeddings, captions and labels of a split's drawings."""

    def __init__(self, model: ImageTextModel, path: str, every: int = 1) -> None:
        source = open_source(in_cache(path))
        pairs = [source[index] for index in range(0, len(source), every)]
        preprocess = model.preprocess
        described = model.describe_many([preprocess.square(preprocess.decode(p.image, p.name)) for p in pairs])
        self.labels = np.array([pair.captions[0] for pair in pairs])
        self.vectors = np.stack([one.embedding for one in described]).astype(np.float16).astype(np.float32)
        self.captions = model.embed_texts([one.captions[0].text or "nothing" for one in described])
        self.texts = dict(zip(sorted(set(self.labels)), model.embed_texts(sorted(set(self.labels))), strict=True))

    def queries(self, size: int | None, random: np.random.Generator) -> Iterator[tuple[bool, np.ndarray, tuple]]:
        """Queries of a library of some size: whether it holds what is asked for, which hits are right, and the
        arguments of `evidence`."""
        labels = random.permutation(sorted(self.texts))
        there = set(labels[: len(labels) // 2])
        library = random.permutation(np.flatnonzero(np.isin(self.labels, list(there))))[:size]
        kept, vectors, captions = self.labels[library], self.vectors[library], self.captions[library]
        for query in (*random.permutation(sorted(set(kept)))[:QUERIES], *labels[len(labels) // 2 :][:QUERIES]):
            vector = self.texts[query]
            scores = vectors @ vector
            best = np.argsort(-scores)[:LOOKED_AT]
            others = captions[:CAPTIONS]
            arguments = (vector, scores[best], vectors[:SAMPLE], vector[None], captions[best], others)
            yield query in there, kept[best] == query, arguments


def trials(size: int | None) -> int:
    """Small libraries have few queries, so that more of them are drawn."""
    return 20 if size == SIZES[0] else 5


def measured(splits: dict[str, Split], smoke: bool) -> dict[str, object]:
    """How often the answer to "is it there" is right, and the share of right hits by their relevance."""
    random = np.random.default_rng(MEASURED)
    rows, hits = [], []
    for (name, split), size in itertools.product(splits.items(), SIZES):
        verdicts = []
        for _ in range(1 if smoke else trials(size)):
            for is_there, is_right, arguments in split.queries(size, random):
                found = relevances(evidence(*arguments))
                verdicts.append((is_there, bool((found >= MIN_RELEVANCE).any())))
                hits += zip(found.tolist(), is_right.tolist(), strict=True)
        there = round(float(np.mean([said for is_there, said in verdicts if is_there])), 3)
        not_there = round(float(np.mean([not said for is_there, said in verdicts if not is_there])), 3)
        rates = {"there": there, "not_there": not_there, "balanced": round((there + not_there) / 2, 3)}
        rows.append({"split": name, "size": size or "all", "queries": len(verdicts), **rates})
    found, is_right = np.array(hits).T
    bands = [
        {"from": low, "to": high, "hits": int(mask.sum()), "right": round(float(is_right[mask].mean()), 3)}
        for low, high in itertools.pairwise(BANDS)
        if (mask := (found >= low) & (found < high)).any()
    ]
    return {"model": DEFAULT, "machine": machine(), "threshold": MIN_RELEVANCE, "is_it_there": rows, "relevance": bands}


def fitted(splits: dict[str, Split]) -> list[float]:
    """The numbers of the logistic curve under which the hits of all splits are likeliest."""
    random = np.random.default_rng(FITTED)
    found, right = [], []
    for split, size in itertools.product(splits.values(), SIZES):
        for _ in range(trials(size)):
            for _, is_right, arguments in split.queries(size, random):
                found.append(evidence(*arguments))
                right.append(is_right)
    columns, is_right = np.concatenate(found), np.concatenate(right)

    def surprise(numbers: np.ndarray) -> float:
        logits = columns @ numbers[:2] + numbers[2]
        return float(np.logaddexp(0, np.where(is_right, -logits, logits)).mean())

    return [round(float(number), 2) for number in minimize(surprise, (PER_DEVIATION, PER_AGREEMENT, OFFSET)).x]


def main() -> None:
    """Measure, and write the results; or fit."""
    parser = parser_of(__doc__)
    parser.add_argument("--fit", action="store_true", help="print the numbers of the curve that fit best")
    options = parse(parser)
    model = grr_coca.load(DEFAULT)
    if options.smoke:
        splits = {"test": Split(model, SPLITS["test"], every=20)}
    else:
        splits = {name: Split(model, path) for name, path in SPLITS.items()}
    if options.fit:
        print("PER_DEVIATION, PER_AGREEMENT, OFFSET:", *fitted(splits))
        return
    results = measured(splits, bool(options.smoke))
    (options.out / "search_relevance.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
