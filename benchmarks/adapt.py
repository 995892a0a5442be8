"""Measure `grr-coca adapt` on the test splits of three domains: retrieval and captions, beside its base.

    python benchmarks/adapt.py --out benchmarks/results/adapt.json
    python benchmarks/adapt.py --runs RUNS --out benchmarks/results/adapt.json

With `--runs`, fine-tuned models are measured, too, by themselves and as adapted at the end; for each domain:
`grr-coca finetune recipes/DOMAIN.yaml --checkpoint icons --out RUNS/DOMAIN`.

Models are adapted to `train`. Features and values were frozen by folds of `train` before `test` was read.
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from grr_coca import load
from grr_coca.adapt.adapt_model import adapt_model
from grr_coca.cli import exit_code
from grr_coca.common.outputs import write_output
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.caption_metrics import score_captions
from grr_coca.infer.image_text_model import ImageTextModel

DATASETS = Path(__file__).parents[1] / "datasets"


def main() -> int:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", default=["health", "clipart", "glyphs"])
    parser.add_argument("--runs", type=Path, help="folder of fine-tuned runs, named by domain")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--smoke", type=Path, metavar="DIR", help="adapt to 55 pairs, and measure on these, to see that it runs"
    )
    options = parser.parse_args()
    smoke: Path | None = options.smoke
    train, test = ("val", "val") if smoke else ("train", "test")
    domains = ["clipart"] if smoke else options.domains
    target: Path | None = smoke / "adapt.json" if smoke else options.out
    found: dict[str, object] = {}
    for domain in domains:
        with tempfile.TemporaryDirectory() as folder:
            out, began = Path(folder) / "mine", time.process_time()
            learned = open_source(DATASETS / domain / f"{train}-00000.tar")
            adapted = adapt_model(learned, domain, "icons", out)
            seconds = time.process_time() - began
            source = open_source(DATASETS / domain / f"{test}-00000.tar")
            pairs = [source[index] for index in range(len(source))]
            images = [Image.open(io.BytesIO(pair.image)).convert("RGB") for pair in pairs]
            captions = [pair.caption for pair in pairs]
            found[domain] = {
                "processor seconds": round(seconds, 1),
                "values": vars(adapted.header.values),
                "captioning": {**vars(adapted.header.captioning), "confidence": None},
                "icons": measured(load("icons", engine="onnx"), images, captions),
                "adapted": measured(load(out, engine="onnx"), images, captions),
                **of_run(options.runs, domain, images, captions),
            }
        print(domain, json.dumps(found[domain], indent=1), flush=True)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_output(target, lambda file: file.write((json.dumps(found, indent=1) + "\n").encode()))
    return 0


def of_run(runs: Path | None, domain: str, images: list[Image.Image], captions: list[str]) -> dict[str, object]:
    """Measure a fine-tuned run, by itself and adapted; nothing without runs."""
    if runs is None:
        return {}
    return {
        "fine-tuned": measured(load(runs / domain), images, captions),
        "fine-tuned, adapted": measured(load(runs / domain / "adapted"), images, captions),
    }


def measured(model: ImageTextModel, images: list[Image.Image], captions: list[str]) -> dict[str, float]:
    """Recalls both ways (equal captions are right, ties count against), and scores of captions."""
    similar = model.similarity(images, captions)
    is_right = np.array([[one.lower() == other.lower() for other in captions] for one in captions])
    numbers = {}
    for name, rows, right in (("text_to_image", similar.T, is_right.T), ("image_to_text", similar, is_right)):
        best = np.where(right, rows, -np.inf).max(axis=1, keepdims=True)
        ranks = (~(rows < best - 1e-6) & ~right).sum(axis=1)
        numbers |= {f"{name}/R@{k}": round(float((ranks < k).mean()), 4) for k in (1, 10)}
    texts = model.caption(images)
    scores = score_captions(texts, [[caption] for caption in captions]).corpus()
    exact = float(np.mean([one.lower() == other.lower() for one, other in zip(texts, captions, strict=True)]))
    return numbers | {
        "CIDEr": round(scores["CIDEr"], 3),
        "CIDEr-D": round(scores["CIDEr-D"], 3),
        "exact": round(exact, 4),
    }


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
