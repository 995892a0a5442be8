"""Training in fp16: gradients are scaled, so that small ones are not lost, and steps that overflow are skipped."""

import shutil

import pytest
import torch
from support import ALONE, CPU, pretrain, real_pairs, silent, snapshot, tiny_recipe, write_shard

from grr_coca.common.files import read_json
from grr_coca.model.build import build
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.losses import LossWeights
from grr_coca.train.loop import train
from grr_coca.train.optimizer import Optimizers
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.recipe import CheckpointRecipe, OptimizerRecipe, ScheduleRecipe
from grr_coca.train.run_checkpoints import resume_point
from grr_coca.train.step import LossScale, Trainer, autocast, compute_gradients, count_tokens

RECIPE = OptimizerRecipe(lr=1e-3)


def make_trainer(config, precision: str, loss_scale: LossScale | None = None) -> Trainer:
    model = build(config, seed=0)
    optimizers = Optimizers(model, RECIPE, ScheduleRecipe(steps=10, warmup_steps=1))
    parallel = ParallelModel(model, "ddp", ALONE)
    return Trainer(parallel, optimizers, LossWeights(), autocast(precision, CPU), None, loss_scale=loss_scale)


def steps(trainer: Trainer, batches: list) -> list[dict[str, float]]:
    return [trainer.step([batch], count_tokens([batch]), number) for number, batch in enumerate(batches)]


@pytest.mark.parametrize("num_pieces", [1, 2])
def test_gradients_are_scaled_and_losses_are_not(tiny_config, make_batch, num_pieces):
    config = tiny_config()
    pieces = [make_batch(config, seed=seed) for seed in range(num_pieces)]
    found = []
    for scale in (1.0, 1024.0):
        model = build(config, seed=0)
        parallel = ParallelModel(model, "ddp", ALONE)
        losses = compute_gradients(parallel, pieces, count_tokens(pieces), LossWeights(), autocast("fp32", CPU), scale)
        found.append((losses.coca, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (loss, plain), (same_loss, scaled) = found
    assert torch.equal(loss, same_loss)
    for name, gradient in plain.items():
        torch.testing.assert_close(scaled[name], 1024 * gradient, msg=name)


def test_training_in_fp16_is_close_to_that_in_fp32(tiny_config, make_batch):
    config = tiny_config()
    batches = [make_batch(config, seed=seed) for seed in range(5)]
    half, full = make_trainer(config, "fp16", LossScale(2.0**12)), make_trainer(config, "fp32")
    found, expected = steps(half, batches), steps(full, batches)
    for name in ("coca", "grad_norm"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=0.03)
    assert half.loss_scale == LossScale(2.0**12, finite_steps=5)


def test_overflow_skips_the_step_and_halves_the_factor(tiny_config, make_batch):
    config = tiny_config()
    trainer, batch = make_trainer(config, "fp16", LossScale(2.0**40)), make_batch(config)
    before = {name: tensor.clone() for name, tensor in trainer.model.raw.state_dict().items()}
    (row,) = steps(trainer, [batch])
    assert row["coca"] == pytest.approx(steps(make_trainer(config, "fp32"), [batch])[0]["coca"], rel=0.01)
    assert not torch.tensor(row["grad_norm"]).isfinite()
    assert trainer.loss_scale == LossScale(2.0**39)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.raw.state_dict().items())


def test_factor_grows_after_many_finite_steps():
    scale = LossScale(4.0, finite_steps=LossScale.GROWTH_INTERVAL - 2)
    scale.update(is_finite=True)
    assert scale == LossScale(4.0, LossScale.GROWTH_INTERVAL - 1)
    scale.update(is_finite=True)
    assert scale == LossScale(8.0)
    scale.update(is_finite=True)
    scale.update(is_finite=False)
    assert scale == LossScale(4.0)


@pytest.mark.ci
def test_resumed_run_continues_with_its_factor(tmp_path):
    shard = write_shard(tmp_path / "pairs.tar", real_pairs(24))
    recipe = tiny_recipe(shard, steps=4, precision="fp16", checkpoints=CheckpointRecipe(interval=2, keep_last=2))
    whole, run = tmp_path / "whole", tmp_path / "run"
    pretrain(recipe, whole)
    shutil.copytree(whole, run)
    first, last = sorted((run / "checkpoints").iterdir())
    written = read_json(first / "training" / "loss_scale.json")
    assert written["finite_steps"] > 0
    shutil.rmtree(last)
    point = resume_point(run, recipe)
    assert point == first
    train(recipe, from_pretrained(point), run, ALONE, silent, point)
    assert snapshot(run / "checkpoints" / last.name) == snapshot(whole / "checkpoints" / last.name)
