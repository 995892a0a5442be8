"""What a machine with a GPU should run, by `make test-gpu`: steps, captions and embeddings are those of the CPU.

Each test runs on the CPU as well, by `make test-ci`, so that it stays a test where there is no GPU.
"""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import grr_coca
from grr_coca.common.ranks import Ranks
from grr_coca.model.build import build
from grr_coca.model.losses import LossWeights
from grr_coca.train.optimizer import Optimizers
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.recipe import OptimizerRecipe, ScheduleRecipe
from grr_coca.train.step import Trainer, count_tokens

DRAWINGS = sorted((Path(__file__).parents[1] / "docs" / "drawings").glob("*.webp"))
DEVICES = [pytest.param("cpu", marks=pytest.mark.ci), pytest.param("cuda", marks=pytest.mark.gpu)]
STEPS = 5


def losses_of(config, batches, device, optimizer, precision, num_pieces=1):
    """Losses of some steps on a device, the batch in one piece or in several."""
    model = build(config, seed=0).to(device)
    ranks = Ranks.here(torch.device(device))
    optimizers = Optimizers(model, optimizer, ScheduleRecipe(len(batches), 1))
    trainer = Trainer(ParallelModel(model, "ddp", ranks), optimizers, LossWeights(), precision, ema=None)
    steps = []
    for step, batch in enumerate(batches):
        pieces = [batch] * num_pieces
        steps.append(trainer.step(pieces, count_tokens(pieces), step)["coca"])
    return steps


@pytest.fixture
def batches(tiny_config, make_batch):
    return [make_batch(tiny_config(), seed=seed) for seed in range(STEPS)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("num_pieces", [1, 2])
def test_the_losses_of_training_are_those_of_the_cpu(tiny_config, batches, device, optimizer, num_pieces):
    recipe = OptimizerRecipe(optimizer, lr=1e-3, muon_precision="fp32")
    found, wanted = (
        losses_of(tiny_config(), batches, place, recipe, nullcontext(), num_pieces) for place in (device, "cpu")
    )
    assert found == pytest.approx(wanted, rel=1e-3)
    assert found[-1] != found[0]


@pytest.mark.parametrize("device", DEVICES)
def test_losses_in_bf16_are_close_to_those_in_fp32(tiny_config, batches, device):
    recipe = OptimizerRecipe("muon", lr=1e-3, muon_precision="fp32")
    half = losses_of(tiny_config(), batches, device, recipe, torch.autocast(device, torch.bfloat16))
    full = losses_of(tiny_config(), batches, device, recipe, nullcontext())
    assert half == pytest.approx(full, rel=0.03)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 4}, {"temperature": 0.7, "seed": 1}], ids=["greedy", "beams", "sampled"]
)
def test_captions_and_embeddings_are_those_of_the_cpu(device, options):
    model, reference = (grr_coca.load("icons", place, engine="torch") for place in (device, "cpu"))
    images = list(map(str, DRAWINGS))
    assert model.caption(images, **options) == reference.caption(images, **options)
    np.testing.assert_allclose(model.embed_images(images), reference.embed_images(images), atol=1e-3)
    np.testing.assert_allclose(model.embed_texts("red heart"), reference.embed_texts("red heart"), atol=1e-3)
