"""What a machine with a GPU should run, by `make test-gpu`: steps, captions and embeddings are those of the CPU.

All but those of CUDA itself run on the CPU as well, by `make test-ci`, so that they stay tests where there is no GPU.
"""

import json
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support import real_pairs, snapshot, tiny_recipe, write_shard

import grr_coca
from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import copy_ahead
from grr_coca.model.build import build
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.coca import fast_products, require_exact_products
from grr_coca.model.losses import LossWeights
from grr_coca.train.logs import device_use
from grr_coca.train.optimizer import Optimizers
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.recipe import CheckpointRecipe, OptimizerRecipe, ScheduleRecipe, save_recipe
from grr_coca.train.step import LossScale, Trainer, count_tokens

DRAWINGS = sorted((Path(__file__).parents[1] / "docs" / "drawings").glob("*.webp"))
DEVICES = [pytest.param("cpu", marks=pytest.mark.ci), pytest.param("cuda", marks=pytest.mark.gpu)]
STEPS = 5


def make_trainer(config, device, optimizer, precision, loss_scale=None):
    model = build(config, seed=0).to(device)
    ranks = Ranks.current(torch.device(device))
    optimizers = Optimizers(model, optimizer, ScheduleRecipe(STEPS, 1))
    parallel = ParallelModel(model, "ddp", ranks)
    return Trainer(parallel, optimizers, LossWeights(), precision, ema=None, loss_scale=loss_scale)


def losses_of(config, batches, device, optimizer, precision, num_pieces=1, loss_scale=None):
    """Losses of some steps on a device, the batch in one piece or in several."""
    trainer = make_trainer(config, device, optimizer, precision, loss_scale)
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
def test_training_losses_equal_those_of_the_cpu(tiny_config, batches, device, optimizer, num_pieces):
    recipe = OptimizerRecipe(optimizer, lr=1e-3, muon_precision="fp32")
    found, expected = (
        losses_of(tiny_config(), batches, where, recipe, nullcontext(), num_pieces) for where in (device, "cpu")
    )
    assert found == pytest.approx(expected, rel=1e-3)
    assert found[-1] != found[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, None), (torch.float16, 2.0**12)], ids=str)
def test_losses_in_half_precision_are_close_to_those_in_fp32(tiny_config, batches, device, dtype, scale):
    recipe = OptimizerRecipe("muon", lr=1e-3, muon_precision="fp32")
    loss_scale = None if scale is None else LossScale(scale)
    half = losses_of(tiny_config(), batches, device, recipe, torch.autocast(device, dtype), loss_scale=loss_scale)
    full = losses_of(tiny_config(), batches, device, recipe, nullcontext())
    assert half == pytest.approx(full, rel=0.03)
    assert loss_scale is None or loss_scale.factor == scale, "no step was skipped"


@pytest.mark.gpu
@pytest.mark.parametrize("num_pieces", [1, 2])
def test_step_waits_for_its_gpu_once(tiny_config, batches, num_pieces):
    trainer = make_trainer(tiny_config(), "cuda", OptimizerRecipe(lr=1e-3), torch.autocast("cuda", torch.bfloat16))
    counts = []
    for step, batch in enumerate(batches):
        pieces = [batch.pin_memory()] * num_pieces
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                trainer.step(pieces, count_tokens(pieces), step)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchronizing" in str(warning.message) for warning in caught))
    assert counts[1:] == [1] * (STEPS - 1), "the first step makes the state of the optimizer"


@pytest.mark.parametrize("device", DEVICES)
def test_prefetched_batches_are_complete(tiny_config, make_batch, device):
    batches = [make_batch(tiny_config(), seed=seed) for seed in range(20)]
    pinned = [batch.pin_memory() if device == "cuda" else batch for batch in batches]
    for (copied,), batch in zip(copy_ahead([[each] for each in pinned], torch.device(device)), batches, strict=True):
        busy = copied.images.clone()
        for _ in range(50):  # keeps the device busy while the next copy begins
            busy = busy * 1.0001
        for name in ("images", "token_ids", "next_tokens", "caption_ids", "image_ids"):
            assert getattr(copied, name).device.type == device
            assert torch.equal(getattr(copied, name).cpu(), getattr(batch, name)), name


@pytest.mark.gpu
def test_products_in_use_are_in_tf32_and_those_of_training_exact():
    x = torch.randn(512, 512, device="cuda")
    expected = x.double() @ x.double()
    with fast_products(x.device):
        rounded = (x @ x - expected).abs().max().item()
    require_exact_products()
    exact = (x @ x - expected).abs().max().item()
    assert exact < 1e-3
    if torch.cuda.get_device_capability() >= (8, 0):
        assert rounded > 4 * exact


@pytest.mark.parametrize("device", DEVICES)
def test_run_is_trained_compiled_and_resumed_by_the_command(tmp_path, device):
    """`auto` takes bf16, or fp16, on a GPU."""
    shard, out = write_shard(tmp_path / "pairs.tar", real_pairs(40)), tmp_path / "run"
    recipe = tiny_recipe(shard, steps=6, precision="auto" if device == "cuda" else "bf16", compile=device == "cuda")
    save_recipe(replace(recipe, checkpoints=CheckpointRecipe(interval=3)), tmp_path / "recipe.yaml")
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "grr_coca", "pretrain", tmp_path / "recipe.yaml", "--out", out, "--resume"]
    subprocess.run(command, check=True, env={**os.environ, **hidden})
    whole = snapshot(out / "checkpoints" / "step-000000006")
    numerics = json.loads(whole["training/numerics.json"])
    assert numerics["precision"] in ("bf16", "fp16")
    for path in sorted((out / "checkpoints" / "step-000000006").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (out / "checkpoints" / "step-000000006").rmdir()
    subprocess.run(command, check=True, env={**os.environ, **hidden})
    again = from_pretrained(out / "checkpoints" / "step-000000006")
    for name, tensor in again.model.state_dict().items():
        torch.testing.assert_close(tensor, load(whole["model.safetensors"])[name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 4}, {"temperature": 0.7, "seed": 1}], ids=["greedy", "beams", "sampled"]
)
def test_captions_and_embeddings_equal_those_of_the_cpu(device, options):
    model, reference = (grr_coca.load("icons", where, engine="torch") for where in (device, "cpu"))
    images = list(map(str, DRAWINGS))
    assert model.caption(images, **options) == reference.caption(images, **options)
    np.testing.assert_allclose(model.embed_images(images), reference.embed_images(images), atol=1e-3)
    np.testing.assert_allclose(model.embed_texts("red heart"), reference.embed_texts("red heart"), atol=1e-3)


@pytest.mark.gpu
def test_log_has_the_use_of_the_gpu():
    device = torch.device("cuda", 0)
    device_use(device)
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert device_use(device)["memory_gib"] >= 0.25
    del held
    assert device_use(device).get("utilization", 0.0) <= 1.0
