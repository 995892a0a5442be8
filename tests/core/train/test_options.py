"""Every option of a recipe, through a whole run: what it does is seen in what the run leaves.

A key that is read and then forgotten is the worst defect that a recipe can have.
"""

from dataclasses import replace

import pytest
import torch
import torch._functorch.config
from support import ALONE, differing, pretrain, real_pairs, silent, tiny_recipe, weights, with_key, write_shard
from torch import nn
from torch.utils.checkpoint import checkpoint

from grr_coca.common.errors import UserError
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.dataset import PairDataset
from grr_coca.data.sources.open import open_source
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.coca import ImageEncoder
from grr_coca.train import blocks, setup
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.setup import fit_start, new_checkpoint, training_batches

HALF = "checkpoints/step-000000002"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without any option: its recipe, its folder, its weights."""
    folder = tmp_path_factory.mktemp("plain")
    recipe = tiny_recipe(write_shard(folder / "pairs.tar", real_pairs(16)), steps=4)
    recipe = with_key(recipe, "evaluation.interval", 2)
    return recipe, folder / "run", weights(pretrain(recipe, folder / "run"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("losses.z_loss_weight", 0.1),
        ("optimizer.layer_decay", 0.5),
        ("optimizer.name", "muon"),
        ("precision", "bf16"),
    ],
)
def test_training_option_changes_the_weights(plain, tmp_path, key, value):
    recipe, _, expected = plain
    trained = pretrain(with_key(recipe, key, value), tmp_path / "run")
    assert len(differing(weights(trained), expected)) > len(expected) // 2


def test_model_options_are_trained_and_saved(plain, tmp_path):
    recipe, _, expected = plain
    for key, value in (("num_registers", 3), ("qk_norm", "rms"), ("contrastive", "sigmoid")):
        recipe = with_key(recipe, f"model.{key}", value)
    trained = weights(pretrain(recipe, tmp_path / "run"))
    new = {"image_encoder.registers", "multimodal_decoder.blocks.0.attn.qk_norm.weight", "logit_bias"}
    assert new <= trained.keys() - expected.keys()
    assert differing(trained, weights(from_pretrained(tmp_path / "run"))) == []


def test_fixed_sines_and_cosines_are_saved(plain, tmp_path):
    recipe = plain[0]
    for key, value in {
        "model.preset": "baseline_coca",
        "model.image_size": 64,
        "model.image_positions": "sine_cosine",
        "optimizer.learning_rates": {"image_encoder.position": 0.0},
    }.items():
        recipe = with_key(recipe, key, value)
    pretrain(recipe, tmp_path / "run")
    table = weights(from_pretrained(tmp_path / "run"))["image_encoder.position.embedding"]  # 4 x 4 patches, width 64
    rows, columns = torch.arange(16) // 4, torch.arange(16) % 4
    frequencies = 100 ** -(torch.arange(16, dtype=torch.float64) / 16)
    angles = torch.cat([torch.outer(rows.double(), frequencies), torch.outer(columns.double(), frequencies)], dim=1)
    torch.testing.assert_close(table, torch.cat([angles.sin(), angles.cos()], dim=1).float())
    assert len({tuple(vector) for vector in table.tolist()}) == 16


def test_sines_and_cosines_need_learned_positions(plain, tmp_path):
    recipe = with_key(plain[0], "model.image_positions", "sine_cosine")
    with pytest.raises(UserError, match="needs learned patch positions, which this preset does not have"):
        new_checkpoint(recipe, ALONE)
    with pytest.raises(UserError, match="fine-tuning keeps the positions of its checkpoint; remove model: image_pos"):
        fit_start(new_checkpoint(plain[0], ALONE), replace(recipe, tokenizer=None))


@pytest.mark.ci
def test_resumed_run_keeps_the_rates_of_its_parts(plain, tmp_path):
    recipe = with_key(plain[0], "optimizer.learning_rates", {"text_decoder": 1e-5, "image_encoder.blocks.0": 0.0})
    through = weights(pretrain(recipe, tmp_path / "through"))
    point = tmp_path / "through" / HALF
    (tmp_path / "again").mkdir()
    again = weights(train(recipe, from_pretrained(point), tmp_path / "again", ALONE, silent, point))
    assert differing(again, through) == []
    fresh = weights(new_checkpoint(recipe, ALONE))
    unmoved = set(fresh) - set(differing(fresh, through))
    assert unmoved == {name for name in fresh if name.startswith("image_encoder.blocks.0.")}


# --- Options that leave the numbers, or part of them, as they are


@pytest.mark.ci
def test_patch_dropout_applies_only_in_training(plain, tmp_path, monkeypatch):
    recipe = with_key(plain[0], "model.image_size", 64)
    seen, forward = set(), ImageEncoder.forward

    def spy(self, images, kept_patches=None):
        seen.add((self.training, None if kept_patches is None else kept_patches.shape[1]))
        return forward(self, images, kept_patches)

    monkeypatch.setattr(ImageEncoder, "forward", spy)
    half = with_key(recipe, "data.patch_dropout", 0.5)
    dropped = [weights(pretrain(half, tmp_path / name)) for name in ("a", "b")]
    assert seen == {(True, 8), (False, None)}
    assert differing(*dropped) == []
    assert differing(dropped[0], weights(pretrain(recipe, tmp_path / "all")))


def test_ema_evaluates_the_average_and_trains_equally(plain, tmp_path):
    recipe, folder, expected = plain
    averaged = weights(pretrain(with_key(recipe, "ema", 0.99), tmp_path / "run"))
    assert len(differing(averaged, expected)) > len(expected) // 2
    assert differing(averaged, weights(from_pretrained(tmp_path / "run"))) == []
    rows, others = (read_metrics(run, "train") for run in (folder, tmp_path / "run"))
    assert [row["coca"] for row in rows] == [row["coca"] for row in others]
    assert read_metrics(folder, "val")[0]["coca_loss"] != read_metrics(tmp_path / "run", "val")[0]["coca_loss"]


@pytest.mark.ci
def test_refit_changes_only_the_temperature(plain, tmp_path):
    recipe, folder = with_key(with_key(plain[0], "ema", 0.5), "model.contrastive", "sigmoid"), tmp_path / "learned"
    learned = weights(pretrain(recipe, folder))
    refitted = weights(pretrain(with_key(recipe, "temperature", "refitted"), tmp_path / "refitted"))
    assert set(differing(refitted, learned)) == {"logit_scale", "logit_bias"}
    assert differing(refitted, weights(from_pretrained(tmp_path / "refitted"))) == [], "what is saved is returned"
    earlier = [weights(from_pretrained(run / HALF)) for run in (folder, tmp_path / "refitted")]
    assert differing(*earlier) == [], "it is set at the end alone"
    before, after = (read_metrics(run, "val")[-1] for run in (folder, tmp_path / "refitted"))
    assert after["contrastive_loss"] < before["contrastive_loss"]
    assert after["perplexity"] == before["perplexity"]


def test_gradient_checkpointing_does_not_change_weights(plain, tmp_path, monkeypatch):
    """Nor does an average of the newest weights alone."""
    recipe, _, expected = plain
    recipe = with_key(recipe, "ema", 0.0)
    calls = []
    monkeypatch.setattr(blocks, "checkpoint", lambda *args, **options: calls.append(1) or checkpoint(*args, **options))
    trained = pretrain(with_key(recipe, "gradient_checkpointing", 1.0), tmp_path / "run")
    assert len(calls) == 4 * 4, "of four steps, four blocks"
    assert differing(weights(trained), expected) == []


def test_compiles_blocks_with_the_recompute_budget(plain, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append(self))
    shared = replace(plain[0], compile=True, gradient_checkpointing=0.75)
    with torch._functorch.config.patch(activation_memory_budget=1.0):
        pretrain(shared, tmp_path / "run")
        assert torch._functorch.config.activation_memory_budget == 0.25
    assert len(set(compiled)) == 4


@pytest.mark.parametrize(
    ("key", "value", "passed"),
    [
        ("seed", 7, {"seed": 7}),
        ("data.first_caption", 0.25, {"first_caption": 0.25}),
        ("data.augmentation.shift", 0.125, {"augmentation": Augmentation(shift=0.125)}),
    ],
)
def test_data_option_reaches_the_readers(plain, monkeypatch, key, value, passed):
    recipe, seen = with_key(plain[0], key, value), []

    def made(*args, **options):
        seen.append(options)
        return PairDataset(*args, **options)

    monkeypatch.setattr(setup, "PairDataset", made)
    start, pairs = new_checkpoint(recipe, ALONE), open_source(recipe.data.train)
    next(training_batches(recipe, start, pairs, ALONE))
    (options,) = seen
    assert {name: options[name] for name in passed} == passed
