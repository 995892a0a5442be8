"""What int8 changes: captions and search by the models that ship, on the test splits of the corpora that are here.

    python benchmarks/precision.py --models FOLDER

The folder keeps the exported models, for another run. For each model and split: captions that are exactly right,
CIDEr-D, and how often a label finds its drawing first, of the graphs in fp32 and in int8; in how many captions int8 has
the token ids of fp32, and fp32 those of PyTorch. All inputs of an int8 product share one scale, so a batch matters: how
many captions are the same in batches of 1 and of 64, and how near the embeddings are. Writes `results/precision.json`.
A minute for each model.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import parse, parser_of, report
from PIL import Image

from grr_coca.common.files import CACHE_PREFIX, user_cache
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import clean_caption
from grr_coca.evaluate.caption_metrics import score_captions
from grr_coca.evaluate.caption_split import pairs_by_image
from grr_coca.evaluate.split import Gallery, retrieve
from grr_coca.infer.engine.base import Engine
from grr_coca.infer.engine.onnx import OnnxEngine
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.export.write import write_onnx
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.checkpoint_files import bundled_folder, bundled_models

ROOT = Path(__file__).parents[1]
SPLITS = {
    "pictograms, new styles": "datasets/pictograms/test_style-*.tar",
    "pictograms, new concepts": "datasets/pictograms/test_concept-*.tar",
    "pictograms": "datasets/pictograms/test-*.tar",
    "icons": "cache:icons/test-*.tar",
    "clipart": "datasets/clipart/test-*.tar",
    "glyphs": "datasets/glyphs/test-*.tar",
    "health": "datasets/health/test-*.tar",
}
BATCH = 64


class Split(NamedTuple):
    """Images, and the captions of each."""

    images: list[Image.Image]
    references: list[list[str]]


class Described(NamedTuple):
    """What an engine says of a split: captions as ids and as texts, and the embeddings of images and of references."""

    token_ids: list[tuple[int, ...]]
    captions: list[str]
    images: np.ndarray
    texts: np.ndarray


def main() -> None:
    """Measure all models, and write the report."""
    parser = parser_of(__doc__)
    parser.add_argument("--models", type=Path, help="folder that keeps the exported models")
    options = parse(parser)
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in list(bundled_models())[: 1 if options.smoke else None]:
            rows += _rows(name, options.models or Path(temporary), smoke=options.smoke is not None)
            report("precision", rows, options.out)


def _rows(name: str, models: Path, *, smoke: bool) -> list[dict[str, object]]:
    folder = bundled_folder(name)
    assert folder is not None
    checkpoint = from_pretrained(folder)
    engines: dict[str, Engine] = {
        "torch": TorchEngine(checkpoint.model, checkpoint.preprocess),
        "fp32": OnnxEngine(folder, threads=1),
    }
    if smoke:  # exporting takes a minute
        engines["int8"] = engines["fp32"]
    else:
        if not (models / f"{name}-int8").exists():
            write_onnx(folder, models / f"{name}-int8", "int8")
        engines["int8"] = OnnxEngine(models / f"{name}-int8", threads=1)
    return [
        _row(name, split, checkpoint, engines, read(open_source(_path(path)), checkpoint, 8 if smoke else None))
        for split, path in list(SPLITS.items())[: 1 if smoke else None]
        if _is_here(path)
    ]


def _is_here(path: str) -> bool:
    """Whether a corpus in the user's cache was fetched; those of the repository are."""
    if not path.startswith(CACHE_PREFIX):
        return True
    return any(user_cache().glob(path.removeprefix(CACHE_PREFIX)))


def _row(name: str, title: str, checkpoint: Checkpoint, engines: dict[str, Engine], split: Split) -> dict[str, object]:
    found = {side: describe(ImageTextModel(checkpoint, engine), split, BATCH) for side, engine in engines.items()}
    alone = describe(ImageTextModel(checkpoint, engines["int8"]), split, 1)
    row: dict[str, object] = {"model": name, "split": title, "images": len(split.images)}
    for side in ("fp32", "int8"):
        row |= {f"{key}_{side}": number for key, number in figures(found[side], split).items()}
    return row | {
        "fp32_as_torch": same(found["fp32"].token_ids, found["torch"].token_ids),
        "int8_as_fp32": same(found["int8"].token_ids, found["fp32"].token_ids),
        "int8_cosine": nearness(found["int8"].images, found["fp32"].images),
        "int8_alone_as_in_a_batch": same(alone.token_ids, found["int8"].token_ids),
        "int8_alone_cosine": nearness(alone.images, found["int8"].images),
    }


def read(source: PairSource, checkpoint: Checkpoint, max_images: int | None = None) -> Split:
    """Return a split in memory: each image once, with all of its captions."""
    images, references = [], []
    for pairs in pairs_by_image(source)[:max_images]:
        file = source[pairs[0]]
        images.append(checkpoint.preprocess.decode(file.image, file.name, to_srgb=False))
        references.append([clean_caption(text, source.name(i)) for i in pairs for text in source.captions(i)])
    return Split(images, references)


def describe(model: ImageTextModel, split: Split, batch: int) -> Described:
    """Greedy captions of all images, and the embeddings of images and captions."""
    found = model.describe_many(split.images, batch_size=batch)
    captions = [one.captions[0] for one in found]
    return Described(
        [caption.token_ids for caption in captions],
        [caption.text for caption in captions],
        np.stack([one.embedding for one in found]),
        model.embed_texts([text for texts in split.references for text in texts], batch_size=batch),
    )


def figures(said: Described, split: Split) -> dict[str, float]:
    """Captions that are exactly right and the first hits of captions, both as shares, and CIDEr-D, in points."""
    texts = [text for references in split.references for text in references]
    number_of = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    image_of = [image for image, references in enumerate(split.references) for _ in references]
    gallery = Gallery(
        torch.from_numpy(said.images),
        torch.from_numpy(said.texts),
        torch.tensor(image_of),
        torch.tensor([number_of[text] for text in texts]),
    )
    pairs = list(zip(said.captions, split.references, strict=True))
    return {
        "exact": round(sum(caption in right for caption, right in pairs) / len(pairs), 4),
        "R@1": round(retrieve(gallery, "equal").text_to_image.recall(1), 4),
        "CIDEr-D": round(100 * score_captions(said.captions, split.references).corpus()["CIDEr-D"], 2),
    }


def same(first: list[Any], second: list[Any]) -> float:
    """Return the share of captions with the same token ids."""
    return round(sum(a == b for a, b in zip(first, second, strict=True)) / len(first), 4)


def nearness(first: np.ndarray, second: np.ndarray) -> float:
    """Return the lowest cosine of two embeddings of an image."""
    return round(float((first * second).sum(axis=1).min()), 4)


def _path(path: str) -> str:
    return path if path.startswith(CACHE_PREFIX) else str(ROOT / path)


if __name__ == "__main__":
    main()
