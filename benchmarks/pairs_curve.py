"""Measure what `adapt` finds after 1,000 to 50,000 images of the corpus `icons`; the plan is in `own_pairs.md`.

    python scripts/build_datasets icons
    OMP_NUM_THREADS=2 python benchmarks/pairs_curve.py

The base is `pictograms`, which has not seen the corpus. Images are embedded once. Rows come one by one into
`results/pairs_curve.jsonl`, and a second start continues.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from grr_coca import load
from grr_coca.adapt.adapt_model import adaptation_of
from grr_coca.adapt.fit import fit_images
from grr_coca.adapt.read_pairs import MAX_PAIRS, ImageSet, read_pairs
from grr_coca.cli import exit_code
from grr_coca.common.files import expand_cache_prefix
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import ByImage, Subset
from grr_coca.infer.adapted.adaptation import Adaptation
from grr_coca.infer.adapted.descriptors import unit

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "pairs_curve.jsonl"
BASE = "pictograms"
COUNTS = (1_000, 3_000, 10_000, 30_000, MAX_PAIRS)
"""Images of the corpus, each count with those of the count before it."""
TRAIN, TEST = "cache:icons/train-*.tar", "cache:icons/test_family_tabler-*.tar"


def main() -> int:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="largest number of images")
    parser.add_argument("--out", type=Path, default=ROWS, help="file of rows")
    parser.add_argument(
        "--smoke", type=Path, metavar="DIR", help="30 and 60 images of datasets/health, to see that it runs"
    )
    options = parser.parse_args()
    smoke: Path | None = options.smoke
    out: Path = options.out
    counts: tuple[int, ...] = tuple(count for count in COUNTS if count <= options.most)
    train, test = expand_cache_prefix(TRAIN), expand_cache_prefix(TEST)
    if smoke is not None:
        smoke.mkdir(parents=True, exist_ok=True)
        out, counts = smoke / "pairs_curve.jsonl", (30, 60)
        train, test = (str(ROOT / "datasets" / "health" / f"{split}-*.tar") for split in ("train", "val"))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    missing = [count for count in (0, *counts) if count not in {row["images"] for row in rows}]
    if missing:
        base = load(BASE, engine="onnx")
        learned = read_pairs(first_images(open_source(train), max(missing)), "train", base, {}, lambda *_: None)
        asked = read_pairs(open_source(test), "test", base, {}, lambda *_: None)
        for count in missing:
            rows.append(measured(learned, asked, count))
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    if smoke is not None:
        (smoke / "pairs_curve.json").write_text(json.dumps(rows), encoding="utf-8")
    print(*map(shown, rows), sep="\n")
    return 0


def first_images(source: PairSource, count: int) -> PairSource:
    """Return all pairs of some images in random order, always the same ones."""
    by_image = ByImage(source)
    order = np.random.default_rng(0).permutation(len(by_image))[: max(count, 10)]
    return Subset(source, [pair for image in order.tolist() for pair in by_image[image]])


def measured(learned: ImageSet, asked: ImageSet, count: int) -> dict[str, object]:
    """Return the ranks of the right answers after a number of images; with 0, those of the base as shipped."""
    began = time.process_time()
    similar = unit(asked.embeddings) @ unit(asked.captions.embeddings).T
    if count:
        images = learned.subset(np.arange(min(count, len(learned))))
        fitted = fit_images(images, lambda _: None)
        similar = similarity(adaptation_of(images, fitted, BASE, ""), asked)
    seconds = time.process_time() - began
    captions = asked.captions
    is_right = np.zeros(similar.shape, bool)
    is_right[captions.owners, captions.places] = True
    row: dict[str, object] = {"images": count, "arm": "adapted" if count else "as shipped", "seconds": round(seconds)}
    for name, found, right in (("text_to_image", similar.T, is_right.T), ("image_to_text", similar, is_right)):
        best = np.where(right, found, -np.inf).max(axis=1, keepdims=True)
        row[name] = (~(found < best - 1e-6) & ~right).sum(axis=1).tolist()
    return row


def similarity(adaptation: Adaptation, asked: ImageSet) -> np.ndarray:
    """Return the similarities of images with their distinct captions."""
    vectors, _ = adaptation.image_vectors(asked.embeddings, asked.described)
    return vectors @ adaptation.text_vectors(asked.captions.texts, asked.captions.embeddings).T


def shown(row: dict[str, list[int]]) -> str:
    """Return a row as text, recalls in per cent with their standard error."""
    cells = [f"{row['images']:>6,} {row['arm']:<10}"]
    for name in ("text_to_image", "image_to_text"):
        for k in (1, 10):
            hits = np.array(row[name]) < k
            cells.append(f"{name} R@{k} {100 * hits.mean():.1f} ± {100 * hits.std() / np.sqrt(len(hits)):.1f}")
    return "  ".join(cells)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
