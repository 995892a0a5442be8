"""The engine that computes with PyTorch, against the model's own forward pass: embeddings, and cached decoding."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import next_token_logits
from torch import Tensor

from grr_coca.data.batch import normalize
from grr_coca.data.preprocess import Preprocess
from grr_coca.infer.engine.base import Decoder, Engine, Logits
from grr_coca.infer.engine.torch import DeviceLogits, TorchDecoder, TorchEngine
from grr_coca.infer.fast.layers import fast_copy
from grr_coca.infer.fast.linear import FastLinear
from grr_coca.model.attention import KeyValueCache, KeyValues
from grr_coca.model.build import build
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig

NUM_IMAGES, VOCAB = 4, 60
FEW, MANY = 3, 10**5
"""Tokens of a caption: few leave an image's keys and values unprojected, many do not."""
PREPROCESS = Preprocess(16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 16, 16, 3), dtype=np.uint8)

STEM = pytest.param("grr_coca+stem", marks=pytest.mark.ci)
PRESETS = ("grr_coca", "coca", "grr_coca+qk_norm", STEM, "grr_coca_plus", "open_clip_coca")
"""Those whose decoders differ, or what they read: the other presets differ in their image encoders."""


@pytest.fixture(scope="module", params=PRESETS)
def model(request: pytest.FixtureRequest, tiny_config: Callable[..., CoCaConfig]) -> CoCa:
    # More image tokens than channels, or there is nothing to gain from leaving them unprojected.
    model = build(tiny_config(request.param, num_queries=None if "plus" in request.param else 40), seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" in name:
                parameter.mul_(20)  # at their initial size, a wrong position would hide behind rounding
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def simple(tiny_config: Callable[..., CoCaConfig]) -> CoCa:
    return build(tiny_config(), seed=3).eval()


def _input() -> Tensor:
    return normalize(torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255, PREPROCESS)


# --- Images and texts


@torch.no_grad()
def test_images_and_texts_have_the_embeddings_of_the_model(model):
    engine = TorchEngine(model, PREPROCESS)
    assert isinstance(engine, Engine)
    found = engine.encode_images(PIXELS)
    assert np.abs(found.embedding - model.encode_image(_input()).embedding.numpy()).max() < 1e-5
    token_ids, lengths = _ids(NUM_IMAGES, 9), np.array([9, 4, 6, 5])
    texts = model.encode_text(torch.from_numpy(token_ids), torch.from_numpy(lengths))
    assert np.abs(engine.encode_texts(token_ids, lengths) - texts.numpy()).max() < 1e-5
    assert found.embedding.shape[1] == engine.embed_dim


def test_numbers_of_an_engine_equal_those_of_the_model(tiny_config):
    config = tiny_config()
    for contrastive in ("softmax", "sigmoid"):
        model = build(replace(config, contrastive=contrastive))
        engine = TorchEngine(model, PREPROCESS)
        numbers = engine.embed_dim, engine.context_length, engine.vocab_size
        assert numbers == (config.embed_dim, config.text_decoder.context_length, VOCAB)
        with torch.no_grad():
            model.logit_scale.fill_(2.0)
        assert engine.logit_scale == pytest.approx(np.exp(2.0))
        assert (engine.logit_bias is None) is (contrastive == "softmax")
    assert engine.logit_bias == pytest.approx(model.logit_bias.item())


def test_pixels_may_be_read_only_and_lie_in_any_order(simple):
    engine = TorchEngine(simple, PREPROCESS)
    pixels = PIXELS[::-1].copy(order="F")[::-1]
    pixels.flags.writeable = False
    assert np.array_equal(engine.encode_images(pixels).embedding, engine.encode_images(PIXELS).embedding)


def test_on_a_cpu_the_fast_copy_computes_except_within_autocast(simple):
    engine = TorchEngine(simple, PREPROCESS)
    assert any(isinstance(module, FastLinear) for module in engine.model.modules())
    whole = engine.encode_images(PIXELS).embedding
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(isinstance(module, FastLinear) for module in engine.model.modules())
        assert 1e-5 < np.abs(engine.encode_images(PIXELS).embedding - whole).max() < 0.1


# --- Decoding


@pytest.fixture(scope="module")
def image_tokens(model: CoCa) -> Tensor:
    return model.encode_image(_input()).tokens


def _ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCAB, shape)


def _decoder(model: CoCa, image_tokens: Tensor, **options: object) -> TorchDecoder:
    options = {"num_prompt": 3, "max_tokens": 20, **options}
    return TorchDecoder(model, image_tokens, **options)


def _uncached(model: CoCa, token_ids: np.ndarray, image_tokens: Tensor) -> Tensor:
    return next_token_logits(model, torch.from_numpy(token_ids), image_tokens)[:, -1]


def _assert_equal(cached: Logits, uncached: Tensor) -> None:
    assert uncached.std() > 0.1
    every = np.arange(VOCAB)[None].repeat(len(uncached), axis=0)
    assert np.abs(cached.log_probs_of(every) - uncached.log_softmax(dim=-1).numpy()).max() < 2e-5


@pytest.mark.parametrize(("max_tokens", "pack"), [(FEW, True), (MANY, True), (MANY, False)])
def test_cached_logits_equal_those_of_the_whole_caption(model, image_tokens, max_tokens, pack, monkeypatch):
    monkeypatch.setattr("grr_coca.infer.engine.torch.KeyValueCache", lambda _: KeyValueCache(20))
    used = fast_copy(model) if pack else model
    decoder = _decoder(used, image_tokens, max_tokens=max_tokens, num_captions=2)
    assert isinstance(decoder, Decoder)
    ids = _ids(NUM_IMAGES, 9)
    whole = next_token_logits(model, torch.from_numpy(ids), image_tokens)
    _assert_equal(decoder.step(ids[:, :3]), whole[:, 2])
    for position in range(3, 9):
        _assert_equal(decoder.step(ids[:, position : position + 1]), whole[:, position])


def test_logits_of_a_bf16_model_are_given_in_fp32(model, image_tokens):
    """Log-probabilities of captions are sums: in bf16, those of long captions would differ by halves of a nat."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    values, _ = _decoder(half, image_tokens.bfloat16()).step(_ids(NUM_IMAGES, 2)).largest(3)
    assert values.dtype == np.float32
    assert not np.array_equal(values, torch.from_numpy(values).bfloat16().float().numpy())


@pytest.mark.parametrize("max_tokens", [FEW, MANY])
def test_reordered_rows_keep_their_history(model, image_tokens, max_tokens):
    decoder = _decoder(fast_copy(model), image_tokens, num_prompt=4, max_tokens=4, num_captions=max_tokens)
    prompt = _ids(NUM_IMAGES, 4)
    decoder.step(prompt)
    decoder.reorder(np.arange(NUM_IMAGES).repeat(2))
    past = np.concatenate([prompt.repeat(2, axis=0), _ids(2 * NUM_IMAGES, 2, seed=1)], axis=1)
    for position in (4, 5):
        logits = decoder.step(past[:, position : position + 1])
    _assert_equal(logits, _uncached(model, past, image_tokens.repeat_interleave(2, dim=0)))
    kept = np.array([0, 1, 5, 4])
    decoder.reorder(kept)
    past = np.concatenate([past[kept], _ids(4, 1, seed=2)], axis=1)
    _assert_equal(decoder.step(past[:, -1:]), _uncached(model, past, image_tokens[[0, 0, 2, 2]]))


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(1, MANY), (3, 9)])
def test_cache_follows_reordered_beams_and_removed_images(model, image_tokens, max_tokens, num_prompt, monkeypatch):
    num_beams, num_steps = 4, 6
    slots = num_prompt + num_beams * num_steps
    monkeypatch.setattr("grr_coca.infer.engine.torch.KeyValueCache", lambda _: KeyValueCache(slots))
    decoder = _decoder(
        fast_copy(model), image_tokens, num_prompt=num_prompt, max_tokens=max_tokens, num_captions=num_beams, beams=True
    )
    prompt = _ids(NUM_IMAGES, num_prompt)
    _assert_equal(decoder.step(prompt), _uncached(model, prompt, image_tokens))
    rows, images, past = np.arange(NUM_IMAGES).repeat(num_beams), np.arange(NUM_IMAGES), prompt
    for step in range(num_steps):
        if step:
            chosen = np.random.default_rng(step).integers(0, num_beams, (len(images), num_beams))
            rows = chosen + np.arange(len(images))[:, None] * num_beams
            if step == 4:
                images, rows = images[[0, 3]], rows[[0, 3]]
            rows = rows.ravel()
        decoder.reorder(rows)
        past = np.concatenate([past[rows], _ids(len(rows), 1, seed=step)], axis=1)
        tokens = image_tokens[images].repeat_interleave(num_beams, dim=0)
        _assert_equal(decoder.step(past[:, -1:]), _uncached(model, past, tokens))


@pytest.mark.parametrize(
    ("num_images", "num_captions", "max_tokens", "projects"),
    [(4, 1, MANY, False), (4, 2, 1, False), (4, 2, MANY, True), (1, 1, 1, True)],
)
def test_image_is_projected_once_only_for_many_steps(
    model, image_tokens, num_images, num_captions, max_tokens, projects
):
    tokens = image_tokens[:num_images]
    decoder = _decoder(fast_copy(model), tokens, num_prompt=1, max_tokens=max_tokens, num_captions=num_captions)
    assert all(isinstance(context, KeyValues) is projects for context in decoder.contexts)


def test_logits_are_an_array_only_on_the_cpu(simple):
    decoder = TorchEngine(simple, PREPROCESS).decoder(
        TorchEngine(simple, PREPROCESS).encode_images(PIXELS), num_prompt=1, max_tokens=2
    )
    assert not isinstance(decoder.step(_ids(NUM_IMAGES, 1)), DeviceLogits)
