"""The image encoder of a model of this package is an encoder like others."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from encoder_graphs import write_graph
from PIL import Image
from support import pretrain, real_pairs, tiny_recipe, write_shard

from grr_coca.common.errors import UserError
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import ByImage
from grr_coca.infer.encoder import open_encoder
from grr_coca.infer.load import locate_checkpoint
from grr_coca.infer.write_features import write_features
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.recipe import FeaturesRecipe

PICTURES = [Image.effect_noise(size, 80).convert("RGB") for size in ((90, 50), (64, 64), (31, 200))]


def test_tokens_are_those_of_a_bundled_model():
    encoder, pixels, tokens = open_encoder("coca:icons"), *pixels_and_tokens("icons")
    np.testing.assert_array_equal(np.stack([encoder.info.preprocess(picture) for picture in PICTURES]), pixels)
    np.testing.assert_allclose(encoder.encode(pixels).tokens, tokens, atol=1e-5)
    assert tokens.shape[1:] == (encoder.info.num_tokens, encoder.info.embed_dim)
    assert encoder.info.licence == "apache-2.0"


@pytest.mark.ci
def test_graph_has_the_tokens_of_the_model(run, tmp_path):
    pixels, tokens = pixels_and_tokens(str(run.checkpoint))
    open_encoder(f"coca:{run.checkpoint}").write_graph(tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    np.testing.assert_allclose(session.run(None, {given.name: pixels})[0], tokens, atol=1e-3)


def pixels_and_tokens(name):
    """Return the pixels of `PICTURES` for a model, and the tokens that its image encoder computes in PyTorch."""
    checkpoint = from_pretrained(locate_checkpoint(name))
    pixels = np.stack([checkpoint.preprocess(picture) for picture in PICTURES])
    mean, std = (torch.tensor(getattr(checkpoint.preprocess, key))[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
        return pixels, checkpoint.model.image_encoder(images).numpy()


def test_model_learns_from_the_tokens_of_another(tmp_path):
    write_shard(tmp_path / "pairs.tar", real_pairs(40, "glyphs"))
    images = ByImage(open_source(str(tmp_path / "pairs.tar")))
    write_features(images, open_encoder("coca:pictograms"), "tokens", tmp_path / "features", lambda _: None)
    recipe = tiny_recipe(tmp_path / "pairs.tar", 2)
    recipe = replace(recipe, features=FeaturesRecipe(caches=(str(tmp_path / "features"),), beside=True))
    trained = pretrain(recipe, tmp_path / "run")
    assert trained.encoder.name == "coca:pictograms"


def test_model_with_features_raises(tmp_path):
    write_shard(tmp_path / "pairs.tar", real_pairs(40, "glyphs"))
    features = FeaturesRecipe(encoder=f"onnx:{write_graph(tmp_path)}", beside=True)
    pretrain(replace(tiny_recipe(tmp_path / "pairs.tar", 2), features=features), tmp_path / "run")
    with pytest.raises(UserError, match=r"this model takes features of a frozen encoder"):
        open_encoder(f"coca:{tmp_path / 'run'}")
