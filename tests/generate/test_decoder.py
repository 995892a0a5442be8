"""Cached decoding against the model's own forward pass over the whole caption."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from grr_coca.config import CoCaConfig
from grr_coca.fast.model_copy import fast_copy
from grr_coca.generate.decoder import CachedDecoder
from grr_coca.layers.scaled_attention import KeyValues
from grr_coca.model import CoCa, build
from support import next_token_logits

NUM_IMAGES = 4
FEW, MANY = 1, 10**6
"""Reads of an image: few leave its keys and values unprojected, many do not."""


PRESETS = ("grr_coca", "coca", "grr_coca+qk_norm", "grr_coca_plus", "open_clip_coca")
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
def image_tokens(model: CoCa) -> Tensor:
    images = torch.randn(NUM_IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return model.encode_image(images).tokens


def _ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 60, shape, generator=torch.Generator().manual_seed(seed))


def _uncached(model: CoCa, token_ids: Tensor, image_tokens: Tensor) -> Tensor:
    return next_token_logits(model, token_ids, image_tokens)[:, -1]


def _assert_equal(cached: Tensor, uncached: Tensor) -> None:
    assert uncached.std() > 0.1
    torch.testing.assert_close(cached, uncached, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("num_reads", "pack"), [(FEW, True), (MANY, True), (MANY, False)])
def test_cached_logits_are_those_of_the_whole_caption(
    model: CoCa, image_tokens: Tensor, num_reads: int, pack: bool
) -> None:
    decoder = CachedDecoder(fast_copy(model) if pack else model, image_tokens, 20, 1 + num_reads, num_reads)
    ids = _ids(NUM_IMAGES, 20)
    whole = next_token_logits(model, ids, image_tokens)
    _assert_equal(decoder.step(ids[:, :3]), whole[:, 2])
    for position in range(3, 20):
        _assert_equal(decoder.step(ids[:, position : position + 1]), whole[:, position])


def test_logits_of_a_bf16_model_are_given_in_fp32(model: CoCa, image_tokens: Tensor) -> None:
    """Log-probabilities of captions are sums: in bf16, those of long captions would differ by halves of a nat."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert CachedDecoder(half, image_tokens.bfloat16(), 8, 1, 1).step(_ids(NUM_IMAGES, 2)).dtype == torch.float32


@pytest.mark.parametrize("num_reads", [FEW, MANY])
def test_rows_that_leave_and_multiply_keep_their_past(model: CoCa, image_tokens: Tensor, num_reads: int) -> None:
    decoder = CachedDecoder(fast_copy(model), image_tokens, 20, 1 + num_reads, num_reads)
    prompt = _ids(NUM_IMAGES, 4)
    decoder.step(prompt)
    decoder.repeat(2)
    past = torch.cat([prompt.repeat_interleave(2, dim=0), _ids(2 * NUM_IMAGES, 2, seed=1)], dim=1)
    for position in (4, 5):
        logits = decoder.step(past[:, position : position + 1])
    _assert_equal(logits, _uncached(model, past, image_tokens.repeat_interleave(2, dim=0)))
    decoder.keep(torch.tensor([0, 2]), torch.tensor([0, 1, 4, 5]))
    past = torch.cat([past[[0, 1, 4, 5]], _ids(4, 1, seed=2)], dim=1)
    logits = decoder.step(past[:, -1:])
    _assert_equal(logits, _uncached(model, past, image_tokens[[0, 0, 2, 2]]))


@pytest.mark.parametrize("num_reads", [FEW, MANY])
def test_beams_that_change_places_keep_their_past(model: CoCa, image_tokens: Tensor, num_reads: int) -> None:
    num_beams, num_steps = 4, 8
    decoder = CachedDecoder(fast_copy(model), image_tokens, 3 + num_beams * num_steps, num_beams, num_reads)
    prompt = _ids(NUM_IMAGES, 3)
    decoder.step(prompt)
    past = prompt[:, None].expand(-1, num_beams, -1)  # B K T
    visible = torch.ones(NUM_IMAGES, num_beams, 3, dtype=torch.bool)
    slots = torch.eye(num_beams, dtype=torch.bool).expand(NUM_IMAGES, -1, -1)
    images = torch.arange(NUM_IMAGES)[:, None]
    for step in range(num_steps):
        parents = torch.randint(0, num_beams, (NUM_IMAGES, num_beams), generator=torch.Generator().manual_seed(step))
        past = torch.cat([past[images, parents], _ids(NUM_IMAGES, num_beams, 1, seed=step)], dim=2)
        visible = torch.cat([visible[images, parents], slots], dim=2)
        logits = decoder.step(past[..., -1].reshape(-1, 1), visible[:, None])
        rows = image_tokens.repeat_interleave(num_beams, dim=0)
        _assert_equal(logits, _uncached(model, past.flatten(0, 1), rows))


def test_an_image_is_projected_once(model: CoCa, image_tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    projected = []
    for block in model.multimodal_decoder.blocks:
        block.cross_attn.kv_proj.register_forward_hook(lambda *_: projected.append(1))
    try:
        decoder = CachedDecoder(model, image_tokens, 8, 2, MANY)
        for _ in range(8):
            decoder.step(_ids(2 * NUM_IMAGES, 1))
    finally:
        for block in model.multimodal_decoder.blocks:
            block.cross_attn.kv_proj._forward_hooks.clear()
    assert len(projected) == len(model.multimodal_decoder.blocks)


@pytest.mark.parametrize(
    ("num_images", "num_captions", "num_reads", "projects"),
    [(4, 1, MANY, False), (4, 2, FEW, False), (4, 2, MANY, True), (1, 1, FEW, True)],
)
def test_what_is_read_of_an_image_depends_on_how_often(
    model: CoCa, image_tokens: Tensor, num_images: int, num_captions: int, num_reads: int, projects: bool
) -> None:
    decoder = CachedDecoder(fast_copy(model), image_tokens[:num_images], 8, num_captions, num_reads)
    assert all(isinstance(context, KeyValues) is projects for context in decoder.contexts)
