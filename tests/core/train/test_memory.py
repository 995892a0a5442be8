"""Memory of an accumulated batch: that of one micro-batch, however large the batch (trap 18).

What an interpreter with torch takes before there is a model is not counted; the images of the whole batch are.
"""

import json
import resource
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import launch

from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch, pad_rows
from grr_coca.data.dataset import find_next_tokens
from grr_coca.model.build import build
from grr_coca.model.losses import LossWeights
from grr_coca.model.presets import get_preset
from grr_coca.train.optimizer import Optimizers
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.recipe import OptimizerRecipe, ScheduleRecipe
from grr_coca.train.step import Trainer, count_tokens

BOUND = 1.15


def measure(image_size: int, num_pieces: int, size: int, steps: int, file: Path) -> None:
    """Do steps of so many micro-batches of `size` pairs; writes seconds, and bytes above those before the model."""
    config = get_preset("grr_coca", "tiny")
    config = replace(config, image_encoder=replace(config.image_encoder, image_size=image_size, patch_size=4))
    generator = torch.Generator().manual_seed(0)
    side, vocab_size = config.image_encoder.image_size, config.text_decoder.vocab_size

    def piece() -> Batch:
        words = torch.randint(3, vocab_size, (size, 20), generator=generator).tolist()
        token_ids, lengths = pad_rows([[1, *row, 2, 0] for row in words])
        ids = torch.randint(1 << 40, (size,), generator=generator)
        next_tokens, images = find_next_tokens(token_ids, lengths), torch.rand(size, 3, side, side, generator=generator)
        return Batch(
            images=images,
            token_ids=token_ids,
            lengths=lengths,
            next_tokens=next_tokens,
            caption_ids=ids,
            image_ids=ids,
            keys=("",) * size,
        )

    before = peak()
    pieces = [piece() for _ in range(num_pieces)]
    model = build(config, seed=0)
    optimizers = Optimizers(model, OptimizerRecipe(), ScheduleRecipe(steps, 0))
    parallel = ParallelModel(model, "ddp", Ranks.current(torch.device("cpu")))
    trainer = Trainer(parallel, optimizers, LossWeights(), nullcontext(), ema=None)
    began = time.monotonic()
    for step in range(steps):
        trainer.step(pieces, count_tokens(pieces), step)
    file.write_text(json.dumps({"bytes": peak(), "before": before, "seconds": time.monotonic() - began}))


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(folder: Path, image_size: int, num_pieces: int, size: int) -> dict[str, float]:
    """In a process of its own."""
    file = folder / f"{num_pieces} x {size}"
    launch(folder, measure, image_size, num_pieces, size, 2, file).finish(timeout=1200)
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("image_size", "num_pieces", "size"),
    [pytest.param(64, 16, 64, marks=pytest.mark.slow), pytest.param(32, 8, 24, marks=pytest.mark.ci)],
    ids=["1024 as 16 x 64", "192 as 8 x 24"],
)
def test_accumulation_needs_memory_of_one_micro_batch(tmp_path, image_size, num_pieces, size):
    one = measured(tmp_path, image_size, 1, size)
    accumulated = measured(tmp_path, image_size, num_pieces, size)
    ratio = (accumulated["bytes"] - accumulated["before"]) / (one["bytes"] - one["before"])
    print(f"{ratio:.3f} x; {one}, {accumulated}")
    assert ratio <= BOUND
