"""Measure adaptation and fine-tuning by five folds over all pairs of three domains; the plan is in `own_pairs.md`.

    OMP_NUM_THREADS=1 python benchmarks/own_pairs.py
    python benchmarks/own_pairs.py --report
    python benchmarks/own_pairs.py --report --seeds 2 3

Rows come one by one into `results/own_pairs.jsonl`, and a second start continues.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from grr_coca import load
from grr_coca.adapt.adapt_model import adaptation_of
from grr_coca.adapt.fit import FitResult, fit_images
from grr_coca.adapt.read_pairs import ImageSet, read_pairs
from grr_coca.adapt.ridge import fit, group_linked, group_near_equal, links_of, make_folds
from grr_coca.cli import exit_code
from grr_coca.common.ranks import join_ranks
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import Chain, Subset, every_caption
from grr_coca.evaluate.intervals import Measure
from grr_coca.infer.adapted.adaptation import gaussian
from grr_coca.infer.adapted.descriptors import NUM_DESCRIPTORS, unit
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train import loop
from grr_coca.train.recipe import load_recipe

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "own_pairs.jsonl"
DOMAINS = ("health", "clipart", "glyphs")
SPLITS = ("train", "val", "test")
NUM_FOLDS, NUM_SEEDS = 5, 4
FREE = ("icons", "adapted")
"""Arms without a seed."""
TRAINED = ("fine-tuned", "fine-tuned, adapted", "fine-tuned, adapted, with icons")
METRICS = [(direction, k) for direction in ("text_to_image", "image_to_text") for k in (1, 10)]

Row = dict[str, Any]


def main() -> int:
    """Run, or report."""
    parser = measuring_parser(__doc__, ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(NUM_SEEDS), help="seeds to report")
    options = parser.parse_args()
    if options.report:
        print(report([row for row in read_rows(options.out) if row["arm"] in FREE or row["seed"] in options.seeds]))
        return 0
    smoke: Path | None = options.smoke
    if smoke is not None:
        smoke.mkdir(parents=True, exist_ok=True)
        (smoke / "own_pairs.json").write_text(json.dumps(list(measured(set(), is_smoke=True))), encoding="utf-8")
        return 0
    done = {(row["domain"], row["fold"], row["arm"], row["seed"]) for row in read_rows(options.out)}
    write_rows(measured(done, is_smoke=False), options.out)
    return 0


def measuring_parser(description: str | None, rows: Path) -> argparse.ArgumentParser:
    """Return a parser of the options that all measurements by folds have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=rows, help="file of rows")
    parser.add_argument("--report", action="store_true", help="print tables of the rows that are there")
    parser.add_argument(
        "--smoke", type=Path, metavar="DIR", help="one fold of one domain and two steps, to see that it runs"
    )
    return parser


def write_rows(rows: Iterator[Row], out: Path) -> None:
    """Append rows to a file as they come, and print them."""
    for row in rows:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row["domain"], row["fold"], row.get("seed", ""), row["arm"], recalls(row), flush=True)


def read_rows(path: Path) -> list[Row]:
    """Read rows; none if there is no file. A row that was cut by a stop is dropped."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


# --- Folds


class Domain:
    """All pairs of a domain and their folds. Images that are near-equal or have an equal caption share a fold."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source: PairSource = Chain([open_source(ROOT / "datasets" / name / f"{split}-*.tar") for split in SPLITS])
        self.base = load("icons", engine="onnx")
        self.images = read_pairs(self.source, name, self.base, {}, lambda *_: None)
        width = self.images.features.shape[1] - NUM_DESCRIPTORS
        embeddings, described = self.images.features[:, :width], self.images.features[:, width:]
        near = group_near_equal(unit(embeddings), unit(described), 0.9, 0.97)
        images = np.arange(len(near))
        groups = group_linked(len(near), [*links_of(images, near), *links_of(images, self.captions)])
        self.folds = make_folds(groups, NUM_FOLDS)
        self.groups = groups

    @property
    def captions(self) -> np.ndarray:
        """The first caption of each image, by number."""
        first = np.full(len(self.images), -1)
        first[self.images.captions.owners[::-1]] = self.images.captions.text_ids[::-1]
        return first

    def parts(self, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The images to train on, to validate on (a tenth of the others), and of the fold."""
        rest = np.flatnonzero(self.folds != fold)
        is_val = make_folds(self.groups[rest], 10) == 0
        return rest[~is_val], rest[is_val], np.flatnonzero(self.folds == fold)

    def pairs(self, rows: np.ndarray) -> PairSource:
        """Return the pairs of some images."""
        return Subset(self.source, np.array(self.images.pair_ids)[rows])


# --- Arms


def measured(done: set[tuple[str, int, str, int]], *, is_smoke: bool) -> Iterator[Row]:
    """Measure what is not done yet: first one seed of all folds of all domains, then the next."""
    domains = {name: Domain(name) for name in (DOMAINS[:1] if is_smoke else DOMAINS)}
    seeds = range(1 if is_smoke else NUM_SEEDS)
    for seed in seeds:
        for fold in range(1 if is_smoke else NUM_FOLDS):
            for name, domain in domains.items():
                missing = {arm for arm in (*FREE, *TRAINED) if (name, fold, arm, seed) not in done}
                about = {"domain": name, "fold": fold, "seed": seed}
                if seed == 0 and missing & set(FREE):
                    for arm, row in of_base(domain, fold):
                        if arm in missing:
                            yield {**about, "arm": arm, **row}
                if missing & set(TRAINED):
                    for arm, row in of_run(domain, fold, seed, steps=2 if is_smoke else None):
                        if arm in missing:
                            yield {**about, "arm": arm, **row}


def of_base(domain: Domain, fold: int) -> Iterator[tuple[str, Row]]:
    """`icons` as shipped, and adapted."""
    learned, val, test = domain.parts(fold)
    yield "icons", ranks_of(domain, test, plain_similarity(domain.images, test, domain.captions))
    images = rearranged(domain.images, learned, val)
    fitted = fit_images(images, lambda _: None)
    yield "adapted", ranks_of(domain, test, adapted_similarity(domain, images, fitted, domain.images, test))


def of_run(domain: Domain, fold: int, seed: int, steps: int | None) -> Iterator[tuple[str, Row]]:
    """A fine-tuned model by itself, adapted, and adapted with the embedding of `icons` as a feature."""
    learned, val, test = domain.parts(fold)
    with tempfile.TemporaryDirectory() as folder:
        seconds = fine_tune(domain, learned, val, seed, steps, Path(folder) / "run")
        model = load(Path(folder) / "run")
    tuned = read_pairs(domain.source, domain.name, model, {}, lambda *_: None)
    assert (tuned.digests == domain.images.digests).all()
    about = {"seconds": round(seconds)}
    yield "fine-tuned", about | ranks_of(domain, test, plain_similarity(tuned, test, domain.captions))
    images = rearranged(tuned, learned, val)
    fitted = fit_images(images, lambda _: None, is_tuned=True)
    similar = adapted_similarity(domain, images, fitted, tuned, test)
    yield "fine-tuned, adapted", about | ranks_of(domain, test, similar)
    similar = with_base(domain, images, fitted, tuned, (learned, test))
    yield "fine-tuned, adapted, with icons", about | ranks_of(domain, test, similar)


def fine_tune(domain: Domain, learned: np.ndarray, val: np.ndarray, seed: int, steps: int | None, out: Path) -> float:
    """Fine-tune by the recipe of the domain. Returns the seconds."""
    recipe = load_recipe(ROOT / "recipes" / f"{domain.name}.yaml")
    schedule = recipe.schedule if steps is None else replace(recipe.schedule, steps=steps, warmup_steps=1)
    recipe = replace(
        recipe,
        seed=seed,
        schedule=schedule,
        evaluation=replace(recipe.evaluation, interval=schedule.steps, batch_size=32),
        precision="fp32",
    )
    sources = domain.pairs(learned), every_caption(domain.pairs(val))
    began, usual = time.perf_counter(), loop.training_sources
    loop.training_sources = lambda _: sources  # type: ignore[assignment]
    try:
        with join_ranks() as ranks:
            loop.train(recipe, from_pretrained(locate_checkpoint("icons")), out, ranks, lambda *_: None)
    finally:
        loop.training_sources = usual
    return time.perf_counter() - began


def rearranged(images: ImageSet, learned: np.ndarray, val: np.ndarray) -> ImageSet:
    """The images of the fit, and then those that are held out to choose values."""
    rows = np.concatenate([learned, val])
    return replace(
        images,
        features=images.features[rows],
        digests=images.digests[rows],
        captions=images.captions.subset(rows),
        pair_ids=tuple(images.pair_ids[row] for row in rows.tolist()),
        num_fit=len(learned),
    )


# --- Similarities of the images of a fold with their captions


def plain_similarity(images: ImageSet, test: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """By the embeddings of a model."""
    width = images.features.shape[1] - NUM_DESCRIPTORS
    return unit(images.features[test, :width]) @ unit(images.captions.embeddings[captions[test]]).T


def adapted_similarity(
    domain: Domain,
    images: ImageSet,
    fitted: FitResult,
    every: ImageSet,
    test: np.ndarray,
) -> np.ndarray:
    """By the vectors of an adapted model."""
    adaptation = adaptation_of(images, fitted, "icons", "")
    width = every.features.shape[1] - NUM_DESCRIPTORS
    vectors, _ = adaptation.image_vectors(every.features[test, :width], every.features[test, width:])
    places = domain.captions[test]
    texts = [every.captions.texts[place] for place in places]
    return vectors @ adaptation.text_vectors(texts, every.captions.embeddings[places]).T


def with_base(
    domain: Domain, images: ImageSet, fitted: FitResult, tuned: ImageSet, parts: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """By the same fit with the embedding of `icons` as a further feature."""
    (learned, test), values, space = parts, fitted.values, fitted.space
    width, of_base = (each.features.shape[1] - NUM_DESCRIPTORS for each in (tuned, domain.images))

    def features(rows: np.ndarray) -> np.ndarray:
        own = unit(tuned.features[rows, :width] - images.features[: len(learned), :width].mean(axis=0))
        base = domain.images.features[:, :of_base]
        frozen = unit(base[rows] - base[learned].mean(axis=0))
        return np.concatenate([own, tuned.features[rows, width:], frozen], axis=1)

    ridge = fit(features(learned), values.width, values.penalty)
    predicted = gaussian(features(test), features(learned)[ridge.landmarks], values.width) @ ridge.dual(space.rows)
    places = domain.captions[test]
    is_known = np.ones(len(space.vocabulary), bool)
    asked = (space.without_words(is_known, places) - space.mean) * space.whitening
    similar = unit(predicted * space.whitening) @ unit(asked).T
    mean = images.features[: len(learned), :width].mean(axis=0)
    return similar + values.plain_share * (unit(tuned.features[test, :width] - mean) @ space.plain(places).T)


def ranks_of(domain: Domain, test: np.ndarray, similar: np.ndarray) -> Row:
    """For each image the rank of the right answer in both directions. Ties count against it."""
    texts = [domain.images.captions.texts[place].lower() for place in domain.captions[test]]
    is_right = np.array([[one == other for other in texts] for one in texts])
    found: Row = {}
    for name, rows, right in (("text_to_image", similar.T, is_right.T), ("image_to_text", similar, is_right)):
        best = np.where(right, rows, -np.inf).max(axis=1, keepdims=True)
        found[name] = (~(rows < best - 1e-6) & ~right).sum(axis=1).tolist()
    return found


# --- Report


def recalls(row: Row) -> dict[str, float]:
    """The recalls of a row in per cent."""
    return {f"{name}/R@{k}": round(100 * float((np.array(row[name]) < k).mean()), 1) for name, k in METRICS}


def report(rows: list[Row]) -> str:
    """A table of the recalls of each arm, and the paired gains of fine-tuned and adapted arms, as far as rows go."""
    lines = ["| domain | arm | rows | text to image R@1 / R@10 | image to text R@1 / R@10 |", "|---|---|---|---|---|"]
    for domain in (*DOMAINS, "all"):
        for arm in (*FREE, *TRAINED):
            own = [row for row in rows if row["arm"] == arm and domain in (row["domain"], "all")]
            if own:
                cells = [100 * float(np.mean(hits(own, *metric))) for metric in METRICS]
                shown = [" / ".join(f"{cell:.1f}" for cell in cells[at : at + 2]) for at in (0, 2)]
                lines.append(f"| {domain} | {arm} | {len(own)} | {shown[0]} | {shown[1]} |")
    lines += ["", "Paired gains in points, with 95 % intervals over pictures (seeds averaged) and over folds:", ""]
    lines += ["| domain | gain | metric | | over pictures | over folds |", "|---|---|---|---|---|---|"]
    for domain in (*DOMAINS, "all"):
        for first, second in ((TRAINED[1], "adapted"), (TRAINED[2], "adapted"), (TRAINED[2], TRAINED[1])):
            for metric in METRICS:
                cells = paired_gain(rows, domain, first, second, metric)
                if cells:
                    name = f"{metric[0].replace('_', ' ')} R@{metric[1]}"
                    lines.append(f"| {domain} | {first} over {second} | {name} | {cells} |")
    return "\n".join(lines)


def hits(rows: list[Row], name: str, k: int) -> np.ndarray:
    """For each picture of all folds whether it is found, seeds averaged."""
    by_fold: dict[tuple[str, int], list[np.ndarray]] = {}
    for row in rows:
        by_fold.setdefault((row["domain"], row["fold"]), []).append(np.array(row[name]) < k)
    return np.concatenate([np.mean(by_fold[key], axis=0) for key in sorted(by_fold)])


def paired_gain(rows: list[Row], domain: str, first: str, second: str, metric: tuple[str, int]) -> str:
    """The cells of a paired gain in points: over all, and its intervals over pictures and folds; empty without rows."""
    places = {
        arm: {(row["domain"], row["fold"]) for row in rows if row["arm"] == arm and domain in (row["domain"], "all")}
        for arm in (first, second)
    }
    shared = sorted(places[first] & places[second])
    if not shared:
        return ""
    parts = []
    for place in shared:
        own = [row for row in rows if (row["domain"], row["fold"]) == place]
        gains = [hits([row for row in own if row["arm"] == arm], *metric) for arm in (first, second)]
        parts.append(gains[0] - gains[1])
    over = Measure.mean(np.concatenate(parts)).interval()
    folds = np.array([part.mean() for part in parts])
    half = float("nan") if len(folds) < 2 else _T_975[min(len(folds), 15) - 2] * folds.std(ddof=1) / np.sqrt(len(folds))
    mean = folds.mean()
    return (
        f"{100 * over.value:+.1f} | {100 * over.low:+.1f} … {100 * over.high:+.1f} | "
        f"{100 * (mean - half):+.1f} … {100 * (mean + half):+.1f} ({len(folds)} folds)"
    )


_T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)
"""Quantiles of Student's t for 1 to 14 degrees of freedom."""


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
