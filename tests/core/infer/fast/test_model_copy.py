"""The copy for inference is the same function, and leaves the model alone."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from support import next_token_logits
from torch import nn

from grr_coca.common.torch_private import copy_modules
from grr_coca.infer.fast.layers import AbsorbedCrossAttention, FastGEGLU, FastRMSNorm, FastSelfAttention, fast_copy
from grr_coca.infer.fast.linear import FastLinear
from grr_coca.model.attention import (
    PLAIN,
    CachedLayout,
    CrossAttention,
    KeyValueCache,
    KeyValues,
    Rotary,
    SelfAttention,
    line_angles,
)
from grr_coca.model.blocks import GEGLU, RMSNorm
from grr_coca.model.build import build
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig
from grr_coca_open_clip.model import AffineCrossAttention


@pytest.fixture
def model(tiny_config: Callable[..., CoCaConfig]) -> CoCa:
    return build(tiny_config(num_queries=40), seed=2).eval().requires_grad_(False)


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layer", "fast", "inputs"),
    [
        (nn.Linear(24, 40), FastLinear, (_x(3, 5, 24),)),
        (nn.Linear(24, 40, bias=False), FastLinear, (_x(1, 24),)),
        (nn.Linear(24, 40), FastLinear, (_x(1, 1, 24),)),
        (nn.Linear(24, 41), FastLinear, (_x(1, 1, 24),)),
        (GEGLU(24, 40), FastGEGLU, (_x(1, 1, 24),)),
        (GEGLU(24, 40), FastGEGLU, (_x(3, 5, 24),)),
        (RMSNorm(24), FastRMSNorm, (_x(3, 5, 24) * 10,)),
        (CrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(3, 1, 24), _x(3, 50, 32))),
        (CrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(3, 2, 24), _x(3, 50, 32))),
        (CrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(6, 1, 24), _x(3, 50, 32))),
        (CrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(3, 60, 24), _x(3, 50, 32))),
        (CrossAttention(24, 32, 2, bias=True), AbsorbedCrossAttention, (_x(6, 1, 24), _x(3, 50, 32))),
        (AffineCrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(6, 1, 24), _x(3, 50, 32))),
        (AffineCrossAttention(24, 32, 2, bias=True), AbsorbedCrossAttention, (_x(3, 2, 24), _x(3, 50, 32))),
        (AffineCrossAttention(24, 32, 2, bias=True), AbsorbedCrossAttention, (_x(3, 60, 24), _x(3, 50, 32))),
    ],
)
def test_every_fast_layer_is_the_function_of_its_layer(layer, fast, inputs):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    with torch.inference_mode():
        copied = fast_copy(nn.Sequential(layer, nn.Linear(1, 1)))[0]
        assert type(copied) is fast
        torch.testing.assert_close(copied(*inputs), layer(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [None, RMSNorm(12)])
@pytest.mark.parametrize("rotary", [None, Rotary(line_angles(9, 12))])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_fused_self_attention_equals_its_layer(qk_norm, rotary, num_rows):
    layer = SelfAttention(24, 2, rotary=rotary, qk_norm=qk_norm)
    fused = fast_copy(nn.Sequential(layer))[0]
    assert type(fused) is FastSelfAttention
    x, (old, new) = _x(num_rows, 9, 24), (KeyValueCache(9), KeyValueCache(9))
    with torch.inference_mode():
        torch.testing.assert_close(fused(x, PLAIN), layer(x, PLAIN), rtol=1e-5, atol=1e-6)
        for start, end in ((0, 1), (1, 2), (2, 3), (3, 9)):
            mask = torch.ones(end - start, end, dtype=torch.bool).tril(start)[None, None]
            ours, theirs = (CachedLayout(cache, slice(start, end), mask) for cache in (new, old))
            rows = x[:, start:end]
            torch.testing.assert_close(fused(rows, ours), layer(rows, theirs), rtol=1e-5, atol=1e-6)
        assert torch.equal(x, _x(num_rows, 9, 24))


def test_cache_takes_keys_and_values_joined_or_not():
    joined, apart, new = KeyValueCache(8), KeyValueCache(8), _x(2, 1, 2, 3, 5)
    for rows in (new, new.repeat_interleave(3, dim=0)):  # one of each line, then three side by side
        found = joined.write(rows)
        seen = apart.extend(KeyValues(rows[:, :, 0], rows[:, :, 1]))
        for ours, theirs in zip(found, seen, strict=True):
            assert torch.equal(ours.transpose(1, 2), theirs)
    assert joined.filled == apart.filled == 4


def test_few_queries_leave_the_context_unprojected():
    layer = CrossAttention(24, 32, 2)
    projected = []
    fast_layer = fast_copy(nn.Sequential(layer))[0]
    kv_proj = fast_layer.attn.kv_proj
    kv_proj.register_forward_hook(lambda *_: projected.append(1))
    with torch.inference_mode():
        fast_layer(_x(3, 1, 24), _x(3, 50, 32))
        assert not projected
        fast_layer(_x(3, 60, 24), _x(3, 50, 32))
    assert projected


@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca+stem"])
def test_copy_is_the_function_of_its_model(tiny_config, preset):
    model = build(tiny_config(preset, num_queries=40), seed=2).eval()
    ids, images = torch.tensor([[1, 2, 3]]), _x(1, 3, 16, 16)
    with torch.inference_mode():
        tokens = model.encode_image(images).tokens
        for ours, theirs in (
            (fast_copy(model).encode_image(images), model.encode_image(images)),
            (fast_copy(model).encode_text(ids, torch.tensor([3])), model.encode_text(ids, torch.tensor([3]))),
            (next_token_logits(fast_copy(model), ids, tokens), next_token_logits(model, ids, tokens)),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_copy_is_separate_and_has_the_weights_of_its_time(model):
    before, again = fast_copy(model), fast_copy(model)
    assert before is not again
    tokens, ids = model.encode_image(_x(1, 3, 16, 16)).tokens, torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        next_token_logits(before, ids, tokens)  # the copy is laid out
    with torch.no_grad():
        for parameter in model.multimodal_decoder.parameters():
            parameter.mul_(1.1)
    with torch.inference_mode():
        expected = next_token_logits(model, ids, tokens)
        torch.testing.assert_close(next_token_logits(fast_copy(model), ids, tokens), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(next_token_logits(before, ids, tokens), expected, rtol=1e-3, atol=1e-3)


def test_only_the_copy_is_in_evaluation_mode(model):
    copied = fast_copy(model.train())
    assert not any(module.training for module in copied.modules())
    assert all(module.training for module in model.modules())


def test_copy_of_a_copy_is_the_copy(model):
    copied = fast_copy(model)
    assert fast_copy(copied) is copied


def test_model_is_unchanged_and_released(model):
    names = [name for name, _ in model.named_modules()]
    before = copy.deepcopy(model.state_dict())
    fast_copy(model)
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    forgotten = nn.Sequential(nn.Linear(4, 4))
    reference = weakref.ref(forgotten)
    fast_copy(forgotten)
    del forgotten
    gc.collect()
    assert reference() is None


def test_hooked_replaced_and_other_precision_modules_stay(model):
    assert fast_copy(nn.Sequential(nn.Linear(4, 4)).double())[0].weight.dtype == torch.float64
    watched = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    watched[0].register_forward_hook(lambda *_: None)
    copied = fast_copy(watched)
    assert [type(layer) for layer in copied] == [nn.Linear, FastLinear]
    turning = SelfAttention(24, 2, rotary=Rotary(line_angles(9, 12)))
    turning.rotary.register_forward_hook(lambda *_: None)
    assert type(fast_copy(nn.Sequential(turning))[0]) is SelfAttention
    attn = CrossAttention(24, 32, 2)
    attn.k_norm = RMSNorm(12)  # keys that are normalized must be projected
    assert type(fast_copy(nn.Sequential(attn))[0]) is CrossAttention
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_copy(model) is model


def test_copy_can_be_copied_and_pickled_after_its_use(model):
    images = _x(2, 3, 16, 16)
    fast = fast_copy(model)
    expected = fast.encode_image(images).embedding
    fast.encode_image(images[:1])
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again.encode_image(images).embedding, expected)


@pytest.mark.ci  # importing the compiler takes ten seconds
def test_copy_of_a_compiled_model_is_not_compiled(model):
    images, names = _x(2, 3, 16, 16), set(model.state_dict())
    expected = fast_copy(model).encode_image(images).embedding
    compiled = torch.compile(model, backend="eager")
    for copied in (fast_copy(compiled), fast_copy(copy_modules(compiled))):
        assert torch.equal(copied.encode_image(images).embedding, expected)
    assert set(model.state_dict()) == names
    assert model.image_encoder is compiled.image_encoder
