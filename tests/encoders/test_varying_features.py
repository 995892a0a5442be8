"""Features of slides: their number differs between images, and no encoder can compute them here."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import ALONE, pretrain, silent, tiny_recipe, weights

from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.data.feature_image import feature_image
from grr_coca.data.features import FeatureCache
from grr_coca.data.sources.base import BadSample
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.caption_split import caption_split
from grr_coca.evaluate.split import pair_results
from grr_coca.infer.load import load
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.loop import train
from grr_coca.train.recipe import EvaluationRecipe, FeaturesRecipe
from grr_coca.train.run_checkpoints import resume_point
from grr_coca.train.setup import new_checkpoint
from grr_coca_search.index import Index

WORDS = ("adenoma", "carcinoma", "colon", "breast", "liver")
WIDTH, NUM_SLIDES = 12, 70


def tiles(number):
    """The features of a slide, N × 12, with N of each its own."""
    random = np.random.default_rng(number)
    return random.standard_normal((1 + number % 9, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Features of slides with reports, and their means."""
    folder = tmp_path_factory.mktemp("slides")
    (folder / "slides").mkdir()
    with (folder / "reports.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["slide_id", "report"])
        for number in range(NUM_SLIDES):
            np.save(folder / "slides" / f"s{number}.npy", tiles(number))
            table.writerow([f"s{number}.svs", f"{WORDS[number % 5]} of the {WORDS[number % 3]}"])
    for keep in ("tokens", "mean"):
        given = ("--encoder", "given:virchow", "--given", folder / "slides", "--keep", keep)
        assert main(list(map(str, ("data", "features", folder / "reports.csv", folder / keep, *given)))) == 0
    return folder


def recipe_of(root, keep="tokens", steps=4, **changes):
    recipe = tiny_recipe(root / keep, steps, **changes)
    model = replace(recipe.model, image_size=None, image_layers=None)
    return replace(recipe, model=model, features=FeaturesRecipe())


@pytest.fixture(scope="module")
def trained(root):
    """A model of all tokens, which is also in the folder `run`."""
    return pretrain(recipe_of(root), root / "run")


def test_each_slide_has_its_tokens(root):
    cache = FeatureCache(root / "tokens")
    assert cache.header.encoder.num_tokens is None
    assert cache.header.num_shards == 2  # of 64
    for number in range(NUM_SLIDES):
        np.testing.assert_allclose(cache[number], tiles(number), atol=2e-3)
        np.testing.assert_allclose(cache.mean(number), tiles(number).mean(axis=0), atol=2e-3)
    (root / "tokens" / "00001.ends.npy").rename(root / "moved")
    try:
        with pytest.raises(UserError, match=r"00001\.ends\.npy: corrupt, or cannot be read"):
            FeatureCache(root / "tokens")[69]
    finally:
        (root / "moved").rename(root / "tokens" / "00001.ends.npy")


@pytest.mark.ci
@pytest.mark.parametrize("keep", ["tokens", "mean"])
def test_slides_are_trained_on_resumed_and_captioned(root, tmp_path, keep):
    recipe = recipe_of(root, keep, evaluation=EvaluationRecipe(batch_size=8, num_captions=6))
    trained = pretrain(recipe, tmp_path / "whole")
    assert trained.config.feature_encoder.num_tokens == (None if keep == "tokens" else 1)
    once = replace(recipe, checkpoints=replace(recipe.checkpoints, interval=2))
    train(once, new_checkpoint(once, ALONE), tmp_path / "run", ALONE, silent, stop=lambda progress: progress.step == 3)
    point = resume_point(tmp_path / "run", once)
    train(once, from_pretrained(point), tmp_path / "run", ALONE, silent, resume_from=point)
    ours, theirs = (weights(from_pretrained(tmp_path / name)) for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    source = open_source(root / keep)
    model = load(tmp_path / "whole")
    whole = caption_split(model, source)
    assert len(whole.hypotheses) == NUM_SLIDES
    assert caption_split(model, source, batch_size=1).hypotheses == whole.hypotheses
    results = pair_results(trained, source, 8)
    one_by_one = pair_results(trained, source, 1)
    torch.testing.assert_close(results.embeddings.image, one_by_one.embeddings.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(results.nll, one_by_one.nll, atol=1e-4, rtol=0)


@pytest.mark.ci
def test_features_are_embedded_and_captioned_as_images(root, trained, tmp_path, grr_coca):
    features, run = root / "tokens", root / "run"
    source, model = open_source(features), load(run)
    squares = [model.preprocess.decode(source[number].image, "s") for number in range(8)]
    expected = pair_results(trained, source, 8).embeddings.image
    np.testing.assert_allclose(model.embed_images(squares), expected[:8], atol=1e-5)
    done = grr_coca("caption", features, "-c", run, "--json")
    assert done.code == 0
    captioned = [json.loads(line) for line in done.out.splitlines()]
    assert [row["caption"] for row in captioned] == [
        " ".join(text.split()) for text in caption_split(model, source).hypotheses
    ]
    assert all(row["log_prob"] < 0 for row in captioned)
    assert grr_coca("embed", features, "-c", run, "--out", tmp_path / "e.npy").code == 0
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-5)
    assert grr_coca("index", features, "--out", tmp_path / "index", "-c", run).code == 0
    with Index.open(tmp_path / "index") as index:
        found = {hit.entry.title: hit.caption for hit in index.search("liver", NUM_SLIDES).hits}
    assert found == {f"s{number}": row["caption"] for number, row in enumerate(captioned)}
    labelled = grr_coca("classify", features, "--labels", "colon,liver", "-c", run)
    assert labelled.code == 0
    assert len(labelled.out.splitlines()) == NUM_SLIDES


@pytest.mark.usefixtures("trained")
def test_model_of_all_tokens_rejects_mean_features(root, tmp_path, refused):
    run = root / "run"
    text = f"{root / 'mean'}: contains features of the kind 'mean', but {root / 'run'}"
    assert text in refused("caption", root / "mean", "-c", run)
    assert text in refused("classify", root / "mean", "--labels", "a,b", "-c", run)
    assert text in refused("evaluate", run, "--data", root / "mean")
    model = load(run)
    for digest, problem in ((b"", "these features are means"), (b"x" * 32, "the tokens of these features are not")):
        unknown = feature_image(np.ones(WIDTH, np.float32), model.preprocess.digest, digest)
        with pytest.raises(BadSample, match=r"^the features have no stored tokens here, but this model takes all"):
            model.preprocess.decode_square(unknown, "a")
        with pytest.raises(UserError, match=f"^{problem}"):
            model.engine.encode_images(np.asarray(Image.open(io.BytesIO(unknown)))[None])
    pretrain(recipe_of(root, "mean"), tmp_path / "mean")
    assert "of the kind 'tokens', but" in refused("evaluate", tmp_path / "mean", "--data", root / "tokens")
