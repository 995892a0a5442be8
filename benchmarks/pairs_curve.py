"""Measure what `adapt` and fine-tuning find after 1,000 to 50,000 images of the corpus `icons`; the plan is in
`own_pairs.md`.

    python scripts/build_datasets icons
    OMP_NUM_THREADS=2 python benchmarks/pairs_curve.py
    OMP_NUM_THREADS=2 python benchmarks/pairs_curve.py --train 1000 3000 10000

The base is `pictograms`, which has not seen the corpus. Images are embedded once. Rows come one by one into
`results/pairs_curve.jsonl`, and a second start continues.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from grr_coca import load
from grr_coca.adapt.adapt_model import adaptation_of
from grr_coca.adapt.fit import drop_held_out_copies, fit_images
from grr_coca.adapt.read_pairs import MAX_PAIRS, ImageSet, read_pairs
from grr_coca.cli import exit_code
from grr_coca.common.files import expand_cache_prefix
from grr_coca.common.ranks import join_ranks
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import ByImage, Chain, Subset, every_caption
from grr_coca.infer.adapted.adaptation import Adaptation
from grr_coca.infer.adapted.descriptors import unit
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train import loop
from grr_coca.train.recipe import load_recipe

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "pairs_curve.jsonl"
BASE, LONG = "pictograms", "icons"
"""The base, and the model that was trained on the whole corpus for hours."""
COUNTS = (1_000, 3_000, 10_000, 30_000, MAX_PAIRS)
"""Images of the corpus, each count with those of the count before it."""
STEPS = {1_000: 400, 3_000: 400, 10_000: 1_000}
"""Steps of fine-tuning by `recipes/glyphs.yaml`, by number of images."""
NUM_VAL = 300
"""Images of `val` to choose values of the closed form after fine-tuning."""
TRAIN, VAL, TEST = (f"cache:icons/{split}-*.tar" for split in ("train", "val", "test_family_tabler"))

Row = dict[str, object]


def main() -> int:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="largest number of images")
    parser.add_argument(
        "--train", type=int, nargs="+", default=[], choices=STEPS, help="fine-tune to these numbers of images instead"
    )
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

    def add(row: Row) -> None:
        rows.append(row)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    for count in options.train:
        if (count, "fine-tuned") not in {(row["images"], row["arm"]) for row in rows}:
            for row in trained(expand_cache_prefix(TRAIN), expand_cache_prefix(VAL), test, count, STEPS[count]):
                add(row)
    if missing and not options.train:
        base = load(BASE, engine="onnx")
        learned = read_pairs(first_images(open_source(train), max(missing)), "train", base, {}, lambda *_: None)
        asked = read_pairs(open_source(test), "test", base, {}, lambda *_: None)
        for count in missing:
            add(measured(learned, asked, count))
    if LONG not in {row["arm"] for row in rows} and not options.train:
        asked = read_pairs(open_source(test), "test", load(LONG, engine="onnx"), {}, lambda *_: None)
        about: Row = {"images": len(ByImage(open_source(train))), "arm": LONG}
        add({**about, **ranks_of(plain_similarity(asked), asked)})
    if smoke is not None:
        for row in trained(train, test, test, 60, steps=2):
            add(row)
        (smoke / "pairs_curve.json").write_text(json.dumps(rows), encoding="utf-8")
    print(*map(shown, rows), sep="\n")
    return 0


def first_images(source: PairSource, count: int) -> PairSource:
    """Return all pairs of some images in random order, always the same ones."""
    by_image = ByImage(source)
    order = np.random.default_rng(0).permutation(len(by_image))[: max(count, 10)]
    return Subset(source, [pair for image in order.tolist() for pair in by_image[image]])


def measured(learned: ImageSet, asked: ImageSet, count: int) -> Row:
    """Return the ranks of the right answers after a number of images; with 0, those of the base as shipped."""
    began = time.process_time()
    if not count:
        return {"images": 0, "arm": "as shipped", "seconds": 0, **ranks_of(plain_similarity(asked), asked)}
    images = learned.subset(np.arange(min(count, len(learned))))
    similar = similarity(adaptation_of(images, fit_images(images, lambda _: None), BASE, ""), asked)
    seconds = round(time.process_time() - began)
    return {"images": count, "arm": "adapted", "seconds": seconds, **ranks_of(similar, asked)}


def trained(train: str, val: str, test: str, count: int, steps: int) -> Iterator[Row]:
    """Yield rows of the base fine-tuned to a number of images, by itself and then adapted to them."""
    pairs, held = first_images(open_source(train), count), first_images(open_source(val), NUM_VAL)
    recipe = load_recipe(ROOT / "recipes" / "glyphs.yaml")
    recipe = replace(
        recipe,
        schedule=replace(recipe.schedule, steps=steps, warmup_steps=min(steps - 1, recipe.schedule.warmup_steps)),
        evaluation=replace(recipe.evaluation, interval=steps),
        precision="fp32",
    )
    checkpoint = from_pretrained(locate_checkpoint(BASE))
    began, usual = time.process_time(), loop.training_sources  # type: ignore[attr-defined]
    loop.training_sources = lambda _: (pairs, every_caption(held))  # type: ignore[assignment,attr-defined]
    try:
        with tempfile.TemporaryDirectory() as folder:
            with join_ranks() as ranks:
                loop.train(recipe, checkpoint, Path(folder) / "run", ranks, lambda *_: None)
            model = load(Path(folder) / "run")
    finally:
        loop.training_sources = usual  # type: ignore[attr-defined]
    asked = read_pairs(open_source(test), "test", model, {}, lambda *_: None)
    about: Row = {"images": count, "steps": steps, "seconds": round(time.process_time() - began)}
    yield {"arm": "fine-tuned", **about, **ranks_of(plain_similarity(asked), asked)}
    both = Chain([pairs, held])
    images = drop_held_out_copies(read_pairs(both, "train", model, {}, lambda *_: None, held_from=len(pairs)))
    fitted = fit_images(images, lambda _: None, is_tuned=True)
    similar = similarity(adaptation_of(images, fitted, BASE, ""), asked)
    yield {"arm": "fine-tuned, adapted", **about, **ranks_of(similar, asked)}


def plain_similarity(asked: ImageSet) -> np.ndarray:
    """Return the similarities of images with their distinct captions, by a model itself."""
    return unit(asked.embeddings) @ unit(asked.captions.embeddings).T


def ranks_of(similar: np.ndarray, asked: ImageSet) -> dict[str, list[int]]:
    """Return the rank of the right answer of each query in both directions. Ties count against it."""
    captions, found = asked.captions, {}
    is_right = np.zeros(similar.shape, bool)
    is_right[captions.owners, captions.text_ids] = True
    for name, rows, right in (("text_to_image", similar.T, is_right.T), ("image_to_text", similar, is_right)):
        best = np.where(right, rows, -np.inf).max(axis=1, keepdims=True)
        found[name] = (~(rows < best - 1e-6) & ~right).sum(axis=1).tolist()
    return found


def similarity(adaptation: Adaptation, asked: ImageSet) -> np.ndarray:
    """Return the similarities of images with their distinct captions."""
    vectors, _ = adaptation.image_vectors(asked.embeddings, asked.described)
    return vectors @ adaptation.text_vectors(asked.captions.texts, asked.captions.embeddings).T


def shown(row: Row) -> str:
    """Return a row as text, recalls in per cent with their standard error."""
    cells = [f"{row['images']:>6,} {row['arm']:<19}"]
    for name in ("text_to_image", "image_to_text"):
        for k in (1, 10):
            hits = np.array(row[name]) < k
            cells.append(f"{name} R@{k} {100 * hits.mean():.1f} ± {100 * hits.std() / np.sqrt(len(hits)):.1f}")
    return "  ".join(cells)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
