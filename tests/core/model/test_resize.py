"""A checkpoint that is fitted to other sizes of images and to longer captions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import ALONE, finetuning, silent, weights

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.model.build import build
from grr_coca.model.checkpoint import Checkpoint, from_pretrained, resize_checkpoint, save_checkpoint
from grr_coca.train.loop import train
from grr_coca.train.recipe import ModelRecipe, load_recipe, save_recipe
from grr_coca.train.run_checkpoints import resume_point
from grr_coca.train.setup import fit_start

TEXTS = ["a red heart", "a house by the sea"]


@pytest.fixture(scope="module", params=["grr_coca", "baseline_coca", "open_clip_coca"])
def start(request, run, tiny_config) -> Checkpoint:
    """A checkpoint with RoPE, with learned positions, and one of open_clip."""
    trained = from_pretrained(run.folder)
    config = tiny_config(request.param)
    text = replace(config.text_decoder, vocab_size=trained.tokenizer.vocab_size)
    config = replace(config, text_decoder=text)
    preprocess = replace(trained.preprocess, image_size=config.image_encoder.image_size)
    model = build(config).eval()
    return replace(trained, config=config, model=model, preprocess=preprocess, preset=request.param)


def outputs(checkpoint, pixels):
    model = checkpoint.model
    with torch.inference_mode():
        texts = model.encode_text(*checkpoint.tokenize(TEXTS))
        output = model(pixels, *checkpoint.tokenize(TEXTS))
        return texts, model.multimodal_decoder.lm_head(output.states), output.image_embedding


def test_longer_context_changes_nothing_of_shorter_captions(start):
    longer = resize_checkpoint(start, context_length=100)
    assert longer.config.text_decoder.context_length == 100
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for before, after in zip(outputs(start, pixels), outputs(longer, pixels), strict=True):
        assert torch.equal(before, after)
    long = [" ".join(["house"] * 40)]
    assert longer.tokenize(long)[0].shape[1] > 40 >= start.tokenize(long)[0].shape[1]
    assert longer.model.encode_text(*longer.tokenize(long)).isfinite().all()


def test_images_of_another_size_are_encoded_and_saved(start, tmp_path):
    larger = resize_checkpoint(start, image_size=32)
    assert (larger.preprocess.image_size, larger.config.image_encoder.num_patches) == (32, 64)
    save_checkpoint(larger, tmp_path / "larger")
    again = from_pretrained(tmp_path / "larger")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for before, after in zip(outputs(larger, pixels), outputs(again, pixels), strict=True):
        assert torch.equal(before, after), "the tables of RoPE are those of the saved grid"
    assert resize_checkpoint(start, 16, start.config.text_decoder.context_length) is start


@pytest.mark.parametrize("grid", [2, 8])
def test_learned_positions_of_patches_are_interpolated(tiny_config, run, grid):
    """A smooth function of row and column stays that function at the centres of the new patches."""
    trained, config = from_pretrained(run.folder), tiny_config("baseline_coca")
    model = build(config)

    def smooth(side: int) -> torch.Tensor:
        centres = (torch.arange(side) + 0.5) / side
        rows, columns = centres.repeat_interleave(side), centres.repeat(side)
        return torch.stack([rows, columns, rows * columns, torch.ones(side * side)], dim=1)

    with torch.no_grad():
        model.image_encoder.position.embedding[:, :4] = smooth(4)
    preprocess = replace(trained.preprocess, image_size=16)
    before = replace(trained, config=config, model=model, preprocess=preprocess)
    after = weights(resize_checkpoint(before, image_size=4 * grid))["image_encoder.position.embedding"]
    assert after.shape == (grid * grid, 48)
    inner = [row * grid + column for row in range(grid) for column in range(grid)]
    inner = [place for place in inner if grid == 2 or {0, 1, 6, 7}.isdisjoint({place // grid, place % grid})]
    torch.testing.assert_close(after[inner, :4], smooth(grid)[inner], atol=0.05, rtol=0)
    assert math.isclose(after[:, 3].mean(), 1, abs_tol=1e-4)


def test_other_weights_stay(start):
    before, after = weights(start), weights(resize_checkpoint(start, 32, 100))
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed <= {"image_encoder.position.embedding", "text_decoder.position.embedding"}
    assert bool(changed) is (start.preset != "grr_coca")
    assert all(torch.equal(before[name], after[name]) for name in before if name not in changed)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 30}, "image_size 30 must be divisible by patch_size 4; use 28 or 32"),
        ({"context_length": 8}, "context_length must be at least 40, as in the checkpoint"),
    ],
)
def test_impossible_sizes_are_errors(start, sizes, message):
    with pytest.raises(UserError, match=message):
        resize_checkpoint(start, **sizes)


# --- By a recipe


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """A run of fine-tuning at twice the image size and with a longer context."""
    folder = tmp_path_factory.mktemp("tuned")
    recipe = replace(finetuning(run.recipe), model=ModelRecipe(image_size=32, context_length=40))
    save_recipe(recipe, folder / "mine.yaml")
    recipe = load_recipe(folder / "mine.yaml")
    train(recipe, fit_start(from_pretrained(run.folder), recipe), folder / "run", ALONE, silent)
    return recipe, folder / "run"


def test_fine_tuning_at_another_size_gives_a_model_of_that_size(tuned, run):
    recipe, folder = tuned
    checkpoint = from_pretrained(folder)
    assert checkpoint.config.image_encoder.image_size == checkpoint.preprocess.image_size == 32
    assert checkpoint.config.text_decoder.context_length == 40
    assert checkpoint.step == from_pretrained(run.folder).step + recipe.schedule.steps
    assert resume_point(folder, recipe) == folder / "checkpoints" / f"step-{checkpoint.step:09d}"
    model = grr_coca.load(folder)
    assert np.isfinite(model.embed_texts(TEXTS)).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelRecipe(image_size=30), "model: image_size 30 must be divisible by patch_size 16"),
        (ModelRecipe(context_length=8), "model: context_length must be at least 24, as in the checkpoint"),
        (ModelRecipe(num_registers=4), "model: num_registers 4: fine-tuning keeps the model of its checkpoint"),
        (ModelRecipe("grr_coca", image_size=32), "model: key 'size' is missing; a new model needs both"),
    ],
)
def test_recipe_with_impossible_sizes_is_an_error(run, model, message):
    with pytest.raises(UserError, match=message):
        fit_start(from_pretrained(run.folder), replace(finetuning(run.recipe), model=model))
