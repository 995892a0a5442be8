"""What runs on the device that is none, in a process of its own."""

import json
from pathlib import Path
from typing import Any

import torch
from elsewhere_device import add_device, waits
from support import real_pairs

from grr_coca import load
from grr_coca.common import ranks
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.checkpoint_metrics import measure_checkpoint
from grr_coca.evaluate.labelled import LabelledImages
from grr_coca.evaluate.tasks import measure_probe, measure_zeroshot
from grr_coca.infer.explain.caption import caption_maps
from grr_coca.model.losses import LossWeights
from grr_coca.train.loop import Run

DECODINGS = {
    "greedy": {},
    "beams": {"num_beams": 4, "num_captions": 2},
    "samples": {"temperature": 1.0, "top_k": 90, "top_p": 0.9, "min_p": 0.01, "num_captions": 3},
    "without repetition": {"no_repeat_ngram": 2, "repetition_penalty": 1.2},
}
"""Options of captioning that run through different code."""


def train_elsewhere(library: Path, waited: Path | None = None) -> None:
    """Have the command line train on the device. `waited`: where each step writes how often it waited."""
    device = add_device(library)
    ranks.device_of_process = lambda: device  # type: ignore[assignment]
    if waited is not None:
        _count_waits(waited)


def _count_waits(path: Path) -> None:
    step = Run.step

    def counted(*arguments: Any) -> None:
        before = waits()
        step(*arguments)
        with path.open("a") as file:
            file.write(f"{waits() - before}\n")

    Run.step = counted  # type: ignore[method-assign]


def use(library: Path | None, checkpoint: Path, shard: Path, out: Path) -> None:
    """Use a checkpoint for everything that it is good for, on the device; on the CPU without a library."""
    torch.set_num_threads(1)
    device = torch.device("cpu") if library is None else add_device(library)
    before_all = 0 if library is None else waits()
    model = load(checkpoint, device)
    assert model.device == str(device)
    files = [pair.image for pair in real_pairs(15)]
    preprocess = model.checkpoint.preprocess
    images = [preprocess.decode(file, "an image") for file in files]
    labels = ["a red circle", "a cat", "the flag of France"]
    pixels, words = model.checkpoint.pixels(images[0]), [5, 9, 7, 30]
    labelled = LabelledImages(lambda index: (files[index], str(index)), (0, 1, 2) * 5, tuple(labels))
    measured = measure_checkpoint(model.checkpoint, open_source(str(shard)), 8, LossWeights())
    probe = measure_probe(model.checkpoint, labelled, labelled, 4)
    zeroshot = measure_zeroshot(model.checkpoint, labelled, ("{}",), 4)
    found = {
        "captions": {name: model.caption(images, max_length=8, **options) for name, options in DECODINGS.items()},
        "prompted": model.caption(images, "a red", max_length=8),
        "images": model.embed_images(images).tolist(),
        "texts": model.embed_texts(labels).tolist(),
        "classes": [[(row.label, row.probability) for row in rows] for rows in model.classify(images, labels)],
        "caption maps": [row.heat.tolist() for row in caption_maps(model.checkpoint, pixels, words)],
        "losses": [measured.evaluation.contrastive_loss, measured.evaluation.perplexity],
        "zero-shot": {n: i.value for n, i in zeroshot.metrics.items()},
        "probe": {n: i.value for n, i in probe.metrics.items()},
    }
    out.write_text(json.dumps(found))
    assert library is None or waits() > before_all, "nothing was computed on the device"
