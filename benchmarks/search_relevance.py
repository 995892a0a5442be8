"""How often the relevance of a search is right, with queries for what is and is not in a library.

    python benchmarks/search_relevance.py

The labels of a split of `pictograms` are halved at random: the drawings of one half are the library, and the labels of
both are queries. Writes `results/search_relevance.json`.
"""

import itertools
import json
from pathlib import Path

import numpy as np
from machine import machine

import grr_coca
from grr_coca.data.sources.open import open_source
from grr_coca.inference.model import ImageTextModel
from grr_coca.search.answering.relevance import NOTHING, relevances

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "search_relevance.json"
SPLITS = ("test", "val", "test_style")
SIZES = (10, 50, None)
BANDS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0)
QUERIES, LOOKED_AT, CAPTIONS = 150, 10, 64


class Split:
    """Embeddings, captions and labels of a split's drawings."""

    def __init__(self, model: ImageTextModel, name: str) -> None:
        source = open_source(str(ROOT / "datasets" / "pictograms" / f"{name}-00000.tar"))
        pairs = [source[index] for index in range(len(source))]
        preprocess = model.checkpoint.preprocess
        described = model.describe_many([preprocess.square(preprocess.decode(p.image, p.name)) for p in pairs])
        self.labels = np.array([pair.caption for pair in pairs])
        self.vectors = np.stack([one.embedding.numpy() for one in described]).astype(np.float16).astype(np.float32)
        self.captions = model.embed_texts([one.captions[0].text or "nothing" for one in described]).numpy()
        self.texts = dict(
            zip(sorted(set(self.labels)), model.embed_texts(sorted(set(self.labels))).numpy(), strict=True)
        )


def trial(split: Split, size: int | None, random: np.random.Generator) -> tuple[list[tuple[bool, bool]], list]:
    """For each query whether it is there and what is said; for each hit its relevance and whether it is right."""
    labels = random.permutation(sorted(split.texts))
    there = set(labels[: len(labels) // 2])
    library = random.permutation(np.flatnonzero(np.isin(split.labels, list(there))))[:size]
    kept, vectors, captions = split.labels[library], split.vectors[library], split.captions[library]
    queries = [*random.permutation(sorted(set(kept)))[:QUERIES], *labels[len(labels) // 2 :][:QUERIES]]
    verdicts, hits = [], []
    for query in queries:
        vector = split.texts[query]
        scores = vectors @ vector
        best = np.argsort(-scores)[:LOOKED_AT]
        found = relevances(
            vector, scores[best], vectors, asked=vector[None], captions=captions[best], others=captions[:CAPTIONS]
        )
        verdicts.append((query in there, bool((found >= NOTHING).any())))
        hits += zip(found.tolist(), (kept[best] == query).tolist(), strict=True)
    return verdicts, hits


def main() -> None:
    """Measure, and write the results."""
    model, random = grr_coca.load("pictograms"), np.random.default_rng(1)
    rows, all_hits = [], []
    for name in SPLITS:
        split = Split(model, name)
        for size in SIZES:
            verdicts: list[tuple[bool, bool]] = []
            for _ in range(20 if size == SIZES[0] else 5):
                said, hits = trial(split, size, random)
                verdicts += said
                all_hits += hits
            right = {
                "there": [said for is_there, said in verdicts if is_there],
                "not_there": [not said for is_there, said in verdicts if not is_there],
            }
            rates = {kind: round(float(np.mean(values)), 3) for kind, values in right.items()}
            rows.append({"split": name, "size": size or "all", "queries": len(verdicts), **rates})
            rows[-1]["balanced"] = round((rates["there"] + rates["not_there"]) / 2, 3)
    found, is_right = np.array(all_hits).T
    bands = [
        {"from": low, "to": high, "hits": int(mask.sum()), "right": round(float(is_right[mask].mean()), 3)}
        for low, high in itertools.pairwise(BANDS)
        if (mask := (found >= low) & (found < high)).any()
    ]
    results = {"machine": machine(), "threshold": NOTHING, "is_it_there": rows, "relevance": bands}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
