"""Models that take features of a frozen encoder: padding is not seen, in training and in decoding with a cache."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_models import random_features, with_features

from grr_coca.common.errors import UserError
from grr_coca.infer.engine.torch import TorchDecoder
from grr_coca.infer.fast.layers import fast_copy
from grr_coca.model.blocks import cascade, parallel
from grr_coca.model.build import build
from grr_coca.model.checkpoint_files import read_config, saved_config
from grr_coca.model.config import CoCaConfig, FeatureEncoderConfig

NUMBERS = (9, 4, 7, 1)
KINDS = list(itertools.product((False, True), (None, 5), ("cascade", "parallel")))


@pytest.fixture(params=KINDS, ids=str)
def config(request, tiny_config) -> CoCaConfig:
    beside, num_queries, arrangement = request.param
    plain = tiny_config("grr_coca", num_queries=num_queries, arrangement=arrangement)
    return with_features(plain, beside=beside, num_tokens=None)


def run(model, batch, features):
    images = None if model.image_encoder is None else batch.images
    return model(images, batch.token_ids, batch.lengths, features=features)


def test_padding_changes_nothing(config, make_batch):
    model, batch = build(config).double(), doubled(make_batch(replaced_side(config)))
    for longest in (9, 15):
        features = doubled_features(random_features(NUMBERS, longest))
        found = run(model, batch, features)
        for row, number in enumerate(NUMBERS):
            one = features._replace(tokens=features.tokens[row : row + 1, :number], mask=None)
            images = None if model.image_encoder is None else batch.images[row : row + 1]
            embedding = model.encode_image(images, features=one).embedding
            torch.testing.assert_close(found.image_embedding[row : row + 1], embedding, rtol=0, atol=1e-12)
        shorter = run(model, batch, doubled_features(random_features(NUMBERS)))
        torch.testing.assert_close(found.states, shorter.states, rtol=0, atol=1e-12)


def test_padding_has_no_gradient_and_tokens_have_one(config, make_batch):
    model, batch = build(config), make_batch(replaced_side(config))
    features = random_features(NUMBERS)
    features.tokens.requires_grad_()
    output = run(model, batch, features)
    (output.states.square().sum() + output.image_embedding[:, 0].sum()).backward()
    is_moved = features.tokens.grad.abs().sum(dim=2) > 0
    assert torch.equal(is_moved, features.mask)


def test_full_mask_equals_no_mask(config, make_batch):
    model, batch = build(config).double(), doubled(make_batch(replaced_side(config)))
    features = doubled_features(random_features((6, 6, 6, 6)))
    assert features.mask is None
    full = features._replace(mask=torch.ones(4, 6, dtype=torch.bool))
    for ours, theirs in zip(run(model, batch, features), run(model, batch, full), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [kind for kind in KINDS if "cascade" in kind], ids=str, indirect=True)
@pytest.mark.parametrize(("is_fast", "count"), [(False, 3), (True, 1), (True, 3)])
@torch.inference_mode()
def test_cached_decoding_of_a_padded_batch_equals_single_images(config, is_fast, count):
    """Captions of images that share keys, in one batch and singly; with few images and with many."""
    model = build(config).eval()
    model = fast_copy(model) if is_fast else model
    features = random_features(NUMBERS, 12)
    images = None if model.image_encoder is None else torch.randn(4, 3, 16, 16)
    encoded = model.encode_image(images, features=features)
    ids = torch.randint(3, 60, (4 * count, 3))
    found = decoded(model, encoded.tokens, encoded.mask, ids)
    for row, number in enumerate(NUMBERS):
        one = features._replace(tokens=features.tokens[row : row + 1, :number], mask=None)
        alone = model.encode_image(None if images is None else images[row : row + 1], features=one)
        own = ids[row * count : (row + 1) * count]
        expected = decoded(model, alone.tokens, None, own)
        np.testing.assert_allclose(found[row * count : (row + 1) * count], expected, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_image_that_is_done_takes_its_mask_along(tiny_config):
    model = build(with_features(tiny_config("grr_coca", num_queries=None), beside=False, num_tokens=None)).eval()
    encoded = model.encode_image(None, features=random_features(NUMBERS))
    first, second = np.array([[3]] * 4), np.array([[5], [5]])
    decoder = TorchDecoder(model, encoded.tokens, num_prompt=1, max_tokens=3, mask=encoded.mask)
    decoder.step(first)
    decoder.reorder(np.array([1, 3]))
    found = decoder.step(second)
    kept = TorchDecoder(model, encoded.tokens[[1, 3]], num_prompt=1, max_tokens=3, mask=encoded.mask[[1, 3]])
    kept.step(first[:2])
    every = np.arange(60)[None].repeat(2, axis=0)
    np.testing.assert_allclose(found.log_probs_of(every), kept.step(second).log_probs_of(every), atol=1e-5)


def test_tokens_of_both_encoders_are_read_side_by_side(tiny_config):
    plain = tiny_config("grr_coca", num_queries=None)
    model = build(with_features(plain, beside=True, num_tokens=None))
    features, images = random_features(NUMBERS), torch.randn(4, 3, 16, 16)
    encoded = model.encode_image(images, features=features)
    own = model.image_encoder(images)
    torch.testing.assert_close(encoded.tokens, torch.cat([own, model.feature_encoder(features)], dim=1))
    assert torch.equal(encoded.mask, torch.cat([torch.ones(own.shape[:2], dtype=torch.bool), features.mask], dim=1))


def test_channels_are_standardized_by_stored_numbers(tiny_config):
    model = build(with_features(tiny_config("grr_coca"), beside=False, num_tokens=4))
    features = random_features((4, 4))
    with torch.no_grad():
        expected = model.feature_encoder(features)
        model.feature_encoder.mean.copy_(torch.arange(20.0))
        model.feature_encoder.deviation.copy_(torch.arange(1.0, 21.0))
        moved = features._replace(tokens=features.tokens * torch.arange(1.0, 21.0) + torch.arange(20.0))
        torch.testing.assert_close(model.feature_encoder(moved), expected, atol=1e-5, rtol=0)
    assert {"feature_encoder.mean", "feature_encoder.deviation"} <= model.state_dict().keys()


@pytest.mark.parametrize("arrange", [cascade, parallel])
def test_tokens_of_a_pooler_all_count(arrange):
    patches, mask = torch.randn(2, 5, 3), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    seen = []

    def pool(tokens, mask):
        seen.append(mask)
        return tokens[:, :1]

    assert arrange(pool, pool, patches, mask).mask is None
    assert seen[0] is mask
    assert arrange(lambda tokens, _: tokens, pool, patches, mask).mask is mask


@pytest.mark.parametrize("beside", [False, True])
def test_configs_are_saved_with_a_new_key_only_for_features(tiny_config, beside):
    plain = tiny_config("grr_coca")
    config = with_features(plain, beside=beside, num_tokens=81)
    assert read_config(saved_config(config), "config") == config
    assert "feature_encoder" not in saved_config(plain)
    assert (saved_config(config)["image_encoder"] is None) is not beside


def test_config_of_parts_that_do_not_fit_raises_an_error(tiny_config):
    config = with_features(tiny_config("grr_coca"), beside=True, num_tokens=81)
    other = replace(config.feature_encoder.transformer, embed_dim=16, num_heads=1)
    with pytest.raises(UserError, match=r"must have the same embed_dim, got \[16, 48\]"):
        replace(config, feature_encoder=replace(config.feature_encoder, transformer=other))
    with pytest.raises(UserError, match="a model needs an image_encoder or a feature_encoder; add one"):
        replace(config, image_encoder=None, feature_encoder=None)
    with pytest.raises(UserError, match="position 'rope_2d' of a feature_encoder must be 'none'"):
        FeatureEncoderConfig(feature_dim=3, num_tokens=4, transformer=config.image_encoder.transformer)
    with pytest.raises(UserError, match="position 'none' is only for a feature_encoder"):
        replace(config.image_encoder, transformer=config.feature_encoder.transformer)
    with pytest.raises(UserError, match="num_tokens must be 1 if keep is 'mean', got 81"):
        replace(config.feature_encoder, keep="mean")
    with pytest.raises(UserError, match="this model takes features of a frozen encoder"):
        _ = replace(config, image_encoder=None).own_image_encoder


def replaced_side(config):
    """A config with an image encoder, by which images are made: those of a model in place go unused."""
    if config.image_encoder is not None:
        return config
    from model_configs import model_config

    image = replace(model_config("grr_coca", "tiny").image_encoder, image_size=16, patch_size=4)
    width = replace(image.transformer, embed_dim=config.image_dim, num_heads=3)
    return replace(config, image_encoder=replace(image, transformer=width))


def doubled(batch):
    return replace(batch, images=batch.images.double())


def doubled_features(features):
    return features._replace(tokens=features.tokens.double())


def decoded(model, tokens, mask, ids):
    """Log-probabilities of all tokens after each of `ids`, whose first rows are the prompts of the images."""
    num_images, count = len(tokens), len(ids) // len(tokens)
    decoder = TorchDecoder(model, tokens, num_prompt=1, max_tokens=ids.shape[1], num_captions=count, mask=mask)
    steps = [decoder.step(np.full((num_images, 1), 3))]
    decoder.reorder(np.arange(num_images).repeat(count))
    steps += [decoder.step(column[:, None].numpy()) for column in ids.T[:-1]]
    every = np.arange(60)[None]
    return np.concatenate([step.log_probs_of(every.repeat(len(ids), axis=0)) for step in steps[1:]], axis=1)
