"""How often the relevance of a search is right, with queries for what is and is not in a library.

    python benchmarks/search_relevance.py [--fit]

The captions of a split are halved at random: the drawings of one half are the library, and the captions of both are
queries. The splits are of `pictograms` and of `icons` (after `python scripts/build_datasets icons`); the model is the
one that is used where none is named. Then 2,000 icons of Tabler are indexed, once with their names and once with
numbers as names, and searched for 300 of these names and for things of another kind (`absent_queries.txt`): how many
right hits are told that nothing looks like that? Writes `results/search_relevance.json`.

With `--fit`, it draws other halves, writes the numbers that fit each model best into the folder of the model
(`relevance.json`), and prints those that fit all models at once. This is to be done after each change of the weights or
of the preprocessing: python benchmarks/search_relevance.py --fit && python benchmarks/search_relevance.py
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import machine, parse, parser_of, write
from scipy.optimize import minimize

import grr_coca
from grr_coca.cli import exit_code
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.files import edit_folder_atomic, expand_cache_prefix
from grr_coca.data.sources.open import open_source, require_exists
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint_files import DEFAULT, FOLDER, RELEVANCE
from grr_coca_search.index import Index
from grr_coca_search.query import has_words, query_terms
from grr_coca_search.relevance import MIN_RELEVANCE, RelevanceCurve, curve_of, hit_features

PICTOGRAMS = Path(__file__).parents[1] / "datasets" / "pictograms"
SPLITS = {
    "test": str(PICTOGRAMS / "test-*.tar"),
    "test_style": str(PICTOGRAMS / "test_style-*.tar"),
    "test_family_tabler": "cache:icons/test_family_tabler-*.tar",
    "test_family_carbon": "cache:icons/test_family_carbon-*.tar",
}
FITTED_ON = {"icons": tuple(SPLITS), "pictograms": ("test", "test_style")}
"""Splits of each model: of drawings that it can name."""
SIZES = (10, 50, None)
BANDS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0)
QUERIES, LOOKED_AT, CAPTIONS, SAMPLE = 150, 10, 64, 4096
MEASURED, FITTED = 1, 2
"""Seeds of the halves."""
MAX_DENIED = 0.04
"""Of the queries whose answer is among the first hits, at most this share may be told that nothing looks like that. One
in a hundred less than what is promised, as other libraries differ."""
SAME = 0.98
"""A caption that agrees with the query more than this says the same. Equal words agree by 1."""
NAMED, NUM_NAMED, NUM_ASKED, FIRST = "test_family_tabler", 2000, 300, 5
ABSENT = Path(__file__).with_name("absent_queries.txt")


class Split:
    """Embeddings, captions and labels of a split's drawings."""

    def __init__(self, model: ImageTextModel, path: str, every: int = 1) -> None:
        source = open_source(expand_cache_prefix(path))
        pairs = [source[index] for index in range(0, len(source), every)]
        self.pictures = [(pair.captions[0], pair.image) for pair in pairs]
        preprocess = model.preprocess
        described = model.describe_many([preprocess.square(preprocess.decode(p.image, p.name)) for p in pairs])
        self.labels = np.array([pair.captions[0] for pair in pairs])
        self.vectors = np.stack([one.embedding for one in described]).astype(np.float16).astype(np.float32)
        self.captions = model.embed_texts([one.captions[0].text or "nothing" for one in described])
        self.texts = dict(zip(sorted(set(self.labels)), model.embed_texts(sorted(set(self.labels))), strict=True))

    def queries(self, size: int | None, random: np.random.Generator) -> Iterator[tuple[bool, np.ndarray, tuple]]:
        """Queries of a library of some size: whether it holds what is asked for, which hits are right, and the
        arguments of `hit_features`."""
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


def measured(splits: dict[str, Split], curve: RelevanceCurve, smoke: bool) -> dict[str, object]:
    """Return how often the answer to "is it there" is right, and the share of right hits by their relevance."""
    random = np.random.default_rng(MEASURED)
    rows, hits = [], []
    for (name, split), size in itertools.product(splits.items(), SIZES):
        verdicts = []
        for _ in range(1 if smoke else trials(size)):
            for is_there, is_right, arguments in split.queries(size, random):
                found = curve.relevances(hit_features(*arguments))
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


class Evidence(NamedTuple):
    """Columns of `hit_features` for many hits, whether each of them is right, and if its library is a whole half."""

    columns: np.ndarray
    is_right: np.ndarray
    is_whole: np.ndarray


def evidence_of(splits: Collection[Split]) -> Evidence:
    """Return the features of the hits of all splits."""
    random = np.random.default_rng(FITTED)
    found, right, whole = [], [], []
    for split, size in itertools.product(splits, SIZES):
        for _ in range(trials(size)):
            for _, is_right, arguments in split.queries(size, random):
                found.append(hit_features(*arguments))
                right.append(is_right)
                whole.append(np.full(len(is_right), size is None))
    return Evidence(*map(np.concatenate, (found, right, whole)))


def fitted(columns: np.ndarray, is_right: np.ndarray, is_whole: np.ndarray) -> RelevanceCurve:
    """The curve under which these hits are likeliest. `evidence_of` gives the hits of a query one after the other."""

    def surprise(numbers: np.ndarray) -> float:
        logits = columns @ numbers[:-1] + numbers[-1]
        return float(np.logaddexp(0, np.where(is_right, -logits, logits)).mean())

    numbers = minimize(surprise, np.zeros(columns.shape[1] + 1)).x
    names = ("per_deviation", "per_agreement", "per_log_images", "per_cosine", "offset")
    curve = RelevanceCurve(**{name: round(float(number), 2) for name, number in zip(names, numbers, strict=True)})
    # Among ten or fifty images, the ones that are there stand out more; the limit is for libraries that people search.
    best = curve.relevances(columns[is_whole]).reshape(-1, LOOKED_AT).max(axis=1)
    is_found = is_right[is_whole].reshape(-1, LOOKED_AT)[:, :FIRST].any(axis=1)
    says_it = columns[:, 1] > SAME
    return replace(
        curve,
        nothing_below=round(float(np.quantile(best[is_found], MAX_DENIED)), 4),
        captioned=round(float(is_right[says_it].mean()), 2),
    )


def denied(model_name: str, split: Split, size: int, num_asked: int) -> list[dict[str, object]]:
    """How often a search says that nothing looks like that, of icons that are among the first five, and of things that
    are not there: with the names of the icons as names of files, and with numbers.

    Things of another kind are not there if a word of theirs is in no label of the split.
    """
    random = np.random.default_rng(MEASURED)
    chosen = [split.pictures[place] for place in random.permutation(len(split.pictures))[:size]]
    asked = random.choice(len(chosen), min(num_asked, len(chosen)), replace=False).tolist()
    labels = [label for label, _ in split.pictures]
    texts = ABSENT.read_text(encoding="utf-8").splitlines()
    absent = [text for text in texts if not has_words(query_terms(text), labels)]
    rows: list[dict[str, object]] = []
    for kind in ("names", "numbers"):
        with tempfile.TemporaryDirectory() as place, Index.open(f"{place}/index", model_name, create=True) as index:
            for number, (label, content) in enumerate(chosen):
                name = label.replace("/", " ").replace(" ", "-") if kind == "names" else f"{number:05}"
                path = Path(place) / "icons" / str(number) / f"{name}.webp"
                path.parent.mkdir(parents=True)
                path.write_bytes(content)
            index.add(Path(place) / "icons")
            verdicts = []
            for number in asked:
                result = index.search(chosen[number][0], 10, fold=False)
                if any(chosen[int(hit.entry.folder)][0] == chosen[number][0] for hit in result[:FIRST]):
                    verdicts.append(result.verdict)
            others = [index.search(text, 10, fold=False).verdict for text in absent]
        rows.append(
            {
                "files": kind,
                "images": len(chosen),
                "asked": len(asked),
                "found": round(len(verdicts) / len(asked), 3),
                "denied": round(float(np.mean([said == "nothing" for said in verdicts])), 3) if verdicts else None,
                "not_sure": round(float(np.mean([said == "unsure" for said in verdicts])), 3) if verdicts else None,
                "absent": len(absent),
                "absent_told": round(float(np.mean([said == "nothing" for said in others])), 3) if others else None,
                "absent_likely": round(float(np.mean([said == "likely" for said in others])), 3) if others else None,
            }
        )
    return rows


def fit_all() -> None:
    """Fit each model that ships, and all of them at once."""
    everything = []
    for name, splits in FITTED_ON.items():
        model = grr_coca.load(name)
        everything.append(evidence_of([Split(model, SPLITS[split]) for split in splits]))
        curve = fitted(*everything[-1])
        write_curve(FOLDER / name, curve)
        print(f"{name}: {curve}", flush=True)
    print(f"all: {fitted(*map(np.concatenate, zip(*everything, strict=True)))}")


def write_curve(folder: Path, curve: RelevanceCurve) -> None:
    """Write the numbers into the folder of a bundled model."""
    with edit_folder_atomic(folder) as partial:
        (partial / RELEVANCE).write_text(json.dumps(to_dict(curve), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, and write the results; or fit."""
    parser = parser_of(__doc__)
    parser.add_argument("--fit", action="store_true", help="fit the curves of the models that ship")
    options = parse(parser)
    for path in () if options.smoke else SPLITS.values():
        require_exists(path)
    if options.fit:
        fit_all()
        return
    model = grr_coca.load(DEFAULT)
    curve = curve_of(FOLDER / DEFAULT, model.config)
    assert curve is not None
    if options.smoke:
        splits = {"test": Split(model, SPLITS["test"], every=20)}
    else:
        splits = {name: Split(model, path) for name, path in SPLITS.items()}
    results = measured(splits, curve, bool(options.smoke))
    asked = (
        denied(DEFAULT, splits["test"], 50, 10)
        if options.smoke
        else denied(DEFAULT, splits[NAMED], NUM_NAMED, NUM_ASKED)
    )
    results["is_it_denied"] = asked
    write("search_relevance", results, options.out)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    sys.exit(exit_code(main))
