"""Training with features of a frozen encoder: computed or stored, in place of the image encoder or beside it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_graphs import WIDTH, write_graph
from support import (
    ALONE,
    finetuning,
    pretrain,
    real_pairs,
    silent,
    tiny_recipe,
    weights,
    with_key,
    write_shard,
)

from grr_coca.common.errors import UserError
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.features import FeatureCache
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import ByImage
from grr_coca.evaluate.split import pair_results
from grr_coca.infer.encoder import ImageTokens, open_encoder
from grr_coca.infer.load import load, locate_checkpoint, require_input
from grr_coca.infer.write_features import write_features
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.recipe import FeaturesRecipe, load_recipe
from grr_coca.train.run_checkpoints import resume_point
from grr_coca.train.setup import fit_start, new_checkpoint, training_batches, training_sources

NUM_PAIRS = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pairs, an encoder, and its features in single and in half precision, and their mean."""
    folder = tmp_path_factory.mktemp("frozen")
    write_shard(folder / "pairs.tar", real_pairs(NUM_PAIRS, "glyphs"))
    write_graph(folder)
    encoder, images = opened(folder), ByImage(open_source(str(folder / "pairs.tar")))
    for precision in ("fp32", "fp16"):
        write_features(images, encoder, "tokens", folder / precision, lambda _: None, precision=precision)
    write_features(images, encoder, "mean", folder / "mean", lambda _: None, precision="fp32")
    return folder


@pytest.fixture(scope="module")
def trained(root):
    """A model of features in single precision, which is also in the folder `run`."""
    return pretrain(recipe_of(root, cache="fp32"), root / "run")


def opened(folder):
    return open_encoder(f"onnx:{folder / 'encoder.onnx'}")


def recipe_of(root, *, steps=4, cache=None, beside=False, **changes):
    encoder = None if cache else f"onnx:{root / 'encoder.onnx'}"
    caches = (str(root / cache),) if cache else ()
    recipe = tiny_recipe(root / "pairs.tar", steps, **changes)
    recipe = recipe if beside else with_key(recipe, "model.image_size", None)
    recipe = recipe if beside else with_key(recipe, "model.image_layers", None)
    return replace(recipe, features=FeaturesRecipe(encoder=encoder, caches=caches, beside=beside))


@pytest.mark.ci
@pytest.mark.parametrize("beside", [False, True])
def test_stored_features_train_like_computed_ones(root, tmp_path, beside):
    """Over 20 steps: equal in single precision, within 1e-3 in half."""
    found = {}
    for cache in (None, "fp32", "fp16"):
        recipe = recipe_of(root, steps=20, cache=cache, beside=beside)
        pretrain(recipe, tmp_path / str(cache))
        found[cache] = read_metrics(tmp_path / str(cache), "train")
    for name in ("contrastive", "captioning", "grad_norm"):
        live, single, half = ([row[name] for row in found[cache]] for cache in (None, "fp32", "fp16"))
        assert single == live
        np.testing.assert_allclose(half, live, rtol=1e-3)
    captioning = [row["captioning"] for row in found[None]]
    assert captioning[-1] < captioning[0]


@pytest.mark.parametrize("beside", [False, True])
def test_first_step_has_the_gradients_of_every_new_weight(root, beside):
    recipe = recipe_of(root, beside=beside)
    start = new_checkpoint(recipe, ALONE)
    (batches, *_) = training_batches(recipe, start, training_sources(recipe)[0], ALONE)
    batch = batches[0]
    assert batch.features.tokens.shape == (len(batch), 16, WIDTH)
    assert batch.images.shape[-1] == (16 if beside else 0)
    output = start.model(batch.images, batch.token_ids, batch.lengths, features=batch.features)
    (output.states.square().sum() + output.image_embedding[:, 0].sum()).backward()
    own = {name: parameter.grad for name, parameter in start.model.named_parameters() if "feature_encoder" in name}
    assert own
    assert all(grad is not None and grad.any() for grad in own.values())
    assert any(name.startswith("image_encoder") for name, _ in start.model.named_parameters()) is beside


@pytest.mark.ci
@pytest.mark.parametrize("cache", [None, "fp16", "mean"])
def test_resumed_run_equals_an_uninterrupted_one(root, tmp_path, cache):
    recipe = recipe_of(root, steps=6, cache=cache, beside=True)
    pretrain(recipe, tmp_path / "whole")
    start = new_checkpoint(recipe, ALONE)
    recipe = with_key(recipe, "checkpoints.interval", 3)
    train(recipe, start, tmp_path / "run", ALONE, silent, stop=lambda progress: progress.step == 4)
    point = resume_point(tmp_path / "run", recipe)
    train(recipe, from_pretrained(point), tmp_path / "run", ALONE, silent, resume_from=point)
    ours, theirs = (weights(from_pretrained(tmp_path / name)) for name in ("run", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_features_are_standardized_by_the_training_images(root, trained):
    cache = FeatureCache(root / "fp32")
    tokens = np.concatenate([cache[image] for image in range(NUM_PAIRS)]).astype(np.float64)
    encoder = trained.model.feature_encoder
    np.testing.assert_allclose(encoder.mean, tokens.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.deviation, tokens.std(axis=0), rtol=1e-4)


def test_checkpoint_names_the_encoder_and_captions_by_it(root, trained):
    assert not any(name.startswith("encoder") for name in trained.model.state_dict())
    again = from_pretrained(root / "run")
    assert again.encoder == trained.encoder
    assert again.encoder.digest == opened(root).info.digest
    model = load(root / "run")
    pair = open_source(str(root / "pairs.tar"))[0]
    embedding = model.embed_images([model.preprocess.decode(pair.image, "a")])
    features = FeatureCache(root / "fp32")[0]
    stored = model.engine.encode_features(ImageTokens(features[None].copy(), np.ones((1, len(features)), bool)))
    np.testing.assert_allclose(embedding, stored.embedding, atol=1e-5)
    assert isinstance(model.caption([model.preprocess.decode(pair.image, "a")])[0], str)


@pytest.mark.ci
@pytest.mark.parametrize("beside", [False, True])
def test_fine_tuning_has_separate_rates_for_new_and_old_weights(root, tmp_path, beside):
    """A rate of 0 freezes pretrained parts."""
    base = tiny_recipe(root / "pairs.tar", 2)
    pretrained = pretrain(base, tmp_path / "base")
    recipe = finetuning(replace(recipe_of(root, cache="fp32", beside=beside), schedule=base.schedule))
    rates = {"text_decoder": 0.0, "multimodal_decoder": 1e-4, "feature_encoder": 3e-3}
    recipe = with_key(recipe, "optimizer.learning_rates", rates)
    start = fit_start(from_pretrained(tmp_path / "base"), recipe)
    before, base_weights = weights(start), weights(pretrained)
    shared = before.keys() & base_weights.keys()
    assert all(torch.equal(before[name], base_weights[name]) for name in shared)
    assert base_weights.keys() - shared == (
        set() if beside else {name for name in base_weights if name.startswith("image_encoder")}
    )
    after = weights(train(recipe, start, tmp_path / "run", ALONE, silent))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not any(name.startswith("text_decoder") for name in moved)
    assert {"feature_encoder.feature_proj.weight", "multimodal_decoder.lm_head.weight"} <= moved
    new, old = (
        (after[n] - before[n]).abs().max() for n in ("feature_encoder.norm.weight", "multimodal_decoder.norm.weight")
    )
    assert 5 < new / old < 100


@pytest.mark.usefixtures("trained")
def test_checkpoint_with_features_is_fine_tuned_further(root, tmp_path):
    recipe = finetuning(recipe_of(root, cache="fp16"))
    start = fit_start(from_pretrained(root / "run"), recipe)
    mean = start.model.feature_encoder.mean.clone()
    tuned = train(recipe, start, tmp_path / "second", ALONE, silent)
    assert torch.equal(tuned.model.feature_encoder.mean, mean)
    with pytest.raises(UserError, match="features: beside must be false, as in the checkpoint"):
        fit_start(tuned, with_key(recipe, "features.beside", True))
    with pytest.raises(UserError, match=r"\(mean\) differs from the frozen encoder of the checkpoint"):
        fit_start(tuned, with_key(recipe, "features.caches", [str(root / "mean")]))


@pytest.mark.ci
def test_folder_of_features_replaces_pairs(root, tmp_path):
    """Without any image, with the same losses; and no image is needed to measure the model."""
    found = {}
    for name, recipe in {"cache": recipe_of(root, cache="fp16"), "folder": folder_recipe(root, "fp16")}.items():
        trained = pretrain(recipe, tmp_path / name)
        found[name] = [row["captioning"] for row in read_metrics(tmp_path / name, "train")]
        found[name, "val"] = read_metrics(tmp_path / name, "val")[-1]["coca_loss"]
    assert found["folder"] == found["cache"]
    assert found["folder", "val"] == found["cache", "val"]
    measured = pair_results(trained, open_source(root / "fp16"), 8)
    assert len(measured.nll) == NUM_PAIRS
    folder = locate_checkpoint(str(tmp_path / "folder"))
    for as_pairs in (False, True):
        require_input(folder, [str(root / "fp16")], as_pairs=as_pairs)
        with pytest.raises(UserError, match=r"contains features of the kind 'mean', but .+ takes 'tokens'"):
            require_input(folder, [str(root / "mean")], as_pairs=as_pairs)
    with pytest.raises(UserError, match=r"contains features instead of images; set the key 'features' to \{\}"):
        training_sources(replace(folder_recipe(root, "fp16"), features=None))
    with pytest.raises(UserError, match=r"contains features of the kind 'mean', but the model takes 'tokens'"):
        training_sources(with_key(folder_recipe(root, "fp16"), "data.val", str(root / "mean")))
    with pytest.raises(
        UserError, match=r"pairs\.tar: contains no features; compute them with `grr-coca data features`, or set"
    ):
        training_sources(with_key(folder_recipe(root, "fp16"), "data.val", str(root / "pairs.tar")))


@pytest.mark.ci
def test_images_of_features_are_captioned_with_the_own_encoder(root, tmp_path, grr_coca, refused):
    """`pairs.jsonl` in their folder has the images as long as they are where they were encoded, and unchanged."""
    pairs, images = open_source(str(root / "pairs.tar")), tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.png").write_bytes(pairs[number].image)
        (images / f"{number}.txt").write_text(pairs[number].caption)
    features, run = tmp_path / "features", tmp_path / "run"
    write_features(ByImage(open_source(str(images))), opened(root), "tokens", features, lambda _: None)
    pretrain(recipe_of(root, cache="fp32", beside=True), run)
    listed = features / "pairs.jsonl"
    assert f"encodes images; pass the images, or {listed} if the images are" in refused("caption", features, "-c", run)
    expected = grr_coca("caption", images, "-c", run).out
    assert [line.split("\t")[1] for line in expected.splitlines()] == [
        line.split("\t")[1] for line in grr_coca("caption", listed, "-c", run).out.splitlines()
    ]
    assert grr_coca("index", listed, "--out", tmp_path / "index", "-c", run).code == 0
    assert grr_coca("evaluate", run, "--data", listed, "--batch-size", 4).code == 0
    (images / "0.png").write_bytes(pairs[4].image)
    (images / "1.png").unlink()
    done = grr_coca("caption", listed, "-c", run)
    assert len(done.out.splitlines()) == 2
    assert f"0.png: not the image whose features are in {features}" in done.err
    assert "1.png" in done.err


def folder_recipe(root, name):
    recipe = recipe_of(root, cache=name)
    data = replace(recipe.data, train=str(root / name), val=str(root / name))
    return replace(recipe, data=data, features=FeaturesRecipe())


# --- Errors


def test_features_of_other_images_raise_an_error(root, tmp_path):
    recipe = recipe_of(root, cache="fp32")
    other = write_shard(tmp_path / "other.tar", real_pairs(8, "glyphs"))
    elsewhere = with_key(with_key(recipe, "data.train", str(other)), "data.val", str(other))
    with pytest.raises(
        UserError, match=r"fp32: no features of the images in .*other\.tar; compute them with `grr-coca"
    ):
        training_sources(elsewhere)

    header = root / "fp32" / "features.json"
    for key, part in (("weights", "weights"), ("preprocess", "preprocessing")):
        (tmp_path / key).mkdir()
        for path in header.parent.iterdir():
            (tmp_path / key / path.name).write_bytes(path.read_bytes())
        content = json.loads(header.read_text())
        content["encoder"][key] = {**content["encoder"][key], "image_size": 40} if key == "preprocess" else "0" * 64
        (tmp_path / key / "features.json").write_text(json.dumps(content))
        both = with_key(recipe, "features.caches", [str(root / "fp32"), str(tmp_path / key)])
        with pytest.raises(UserError, match=f"with other {part} than onnx:"):
            training_sources(both)

    digests = root / "fp32" / "00000.digests.npy"
    before = digests.read_bytes()
    rows = np.load(digests)
    np.save(digests, np.roll(rows, 1, axis=0))
    try:
        with pytest.raises(UserError, match=r"contains features of another image than .*; compute the features again"):
            pretrain(recipe, tmp_path / "run")
    finally:
        digests.write_bytes(before)


def test_recipe_keys_without_effect_on_features_raise(root):
    recipe = recipe_of(root, cache="fp32")
    for key, value in (("data.patch_dropout", 0.5), ("model.image_size", 32), ("model.num_registers", 2)):
        with pytest.raises(
            UserError, match=f"{key.replace('.', ': ')}: features replace the image encoder; remove this key"
        ):
            with_key(recipe, key, value)
    with pytest.raises(UserError, match="data: augmentation: features replace the image encoder"):
        replace(recipe, data=replace(recipe.data, augmentation=Augmentation(shift=0.1)))
    with pytest.raises(UserError, match="cannot be combined; set only one of them"):
        FeaturesRecipe(encoder="timm:vit", caches=("a",))
    with pytest.raises(UserError, match="beside: true needs both images and features"):
        FeaturesRecipe(beside=True)
    with pytest.raises(UserError, match="unknown key 'cache'; did you mean 'caches'"):
        with_key(recipe, "features.cache", "a")
    with pytest.raises(UserError, match="freeze: image_backbone: this model takes features"):
        pretrain(replace(recipe, freeze=("image_backbone",)), root / "none")


def test_feature_paths_are_relative_to_the_recipe(tmp_path):
    text = "data: {train: a.tar}\nschedule: {steps: 1, warmup_steps: 0}\nfeatures: {beside: true, %s}\n"
    for written, read in (
        ("caches: [b]", {"caches": (str(tmp_path / "b"),)}),
        ("encoder: onnx:c.onnx", {"encoder": f"onnx:{tmp_path / 'c.onnx'}"}),
        ("encoder: timm:vit=d.safetensors", {"encoder": f"timm:vit={tmp_path / 'd.safetensors'}"}),
        ("encoder: timm:vit=random", {"encoder": "timm:vit=random"}),
    ):
        (tmp_path / "recipe.yaml").write_text(text % written)
        assert load_recipe(tmp_path / "recipe.yaml").features == FeaturesRecipe(beside=True, **read)
