"""The copy for inference is the same function, follows the weights, and leaves the model alone."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from grr_coca.config import CoCaConfig
from grr_coca.fast import weights as packing
from grr_coca.fast.absorbed import AbsorbedCrossAttention
from grr_coca.fast.fused import FusedGEGLU, FusedRMSNorm, PackedLinear
from grr_coca.fast.self_attention import FusedSelfAttention
from grr_coca.fast.weights import packed
from grr_coca.layers.attention import CrossAttention, SelfAttention
from grr_coca.layers.cache import KeyValueCache
from grr_coca.layers.feed_forward import GEGLU
from grr_coca.layers.layout import PLAIN, Cached
from grr_coca.layers.norm import RMSNorm
from grr_coca.layers.rotary import Rotary, line_angles
from grr_coca.layers.scaled_attention import KeyValues
from grr_coca.model import CoCa, build
from support import next_token_logits


@pytest.fixture
def model(tiny_config: Callable[..., CoCaConfig]) -> CoCa:
    return build(tiny_config(num_queries=40), seed=2).eval().requires_grad_(False)


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layer", "fast", "inputs"),
    [
        (nn.Linear(24, 40), PackedLinear, (_x(3, 5, 24),)),
        (nn.Linear(24, 40, bias=False), PackedLinear, (_x(1, 24),)),
        (nn.Linear(24, 40), PackedLinear, (_x(1, 1, 24),)),
        (nn.Linear(24, 41), PackedLinear, (_x(1, 1, 24),)),
        (GEGLU(24, 40), FusedGEGLU, (_x(1, 1, 24),)),
        (GEGLU(24, 40), FusedGEGLU, (_x(3, 5, 24),)),
        (RMSNorm(24), FusedRMSNorm, (_x(3, 5, 24) * 10,)),
        (CrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(3, 1, 24), _x(3, 50, 32))),
        (CrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(3, 2, 24), _x(3, 50, 32))),
        (CrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(6, 1, 24), _x(3, 50, 32))),
        (CrossAttention(24, 32, 2), AbsorbedCrossAttention, (_x(3, 60, 24), _x(3, 50, 32))),
    ],
)
def test_every_fast_layer_is_the_function_of_its_layer(layer: nn.Module, fast: type, inputs: tuple) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    with torch.inference_mode():
        copied = packed(nn.Sequential(layer, nn.Linear(1, 1)), keep=False)[0]
        assert type(copied) is fast
        torch.testing.assert_close(copied(*inputs), layer(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [None, RMSNorm(12)])
@pytest.mark.parametrize("rotary", [None, Rotary(line_angles(9, 12))])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_fused_self_attention_is_that_of_its_layer(
    qk_norm: nn.Module | None, rotary: Rotary | None, num_rows: int
) -> None:
    layer = SelfAttention(24, 2, rotary=rotary, qk_norm=qk_norm)
    fused = packed(nn.Sequential(layer), keep=False)[0]
    assert type(fused) is FusedSelfAttention
    x, (old, new) = _x(num_rows, 9, 24), (KeyValueCache(9), KeyValueCache(9))
    with torch.inference_mode():
        torch.testing.assert_close(fused(x, PLAIN), layer(x, PLAIN), rtol=1e-5, atol=1e-6)
        for start, end in ((0, 1), (1, 2), (2, 3), (3, 9)):
            sees = torch.ones(end - start, end, dtype=torch.bool).tril(start)[None, None]
            ours, theirs = (Cached(cache, slice(start, end), sees) for cache in (new, old))
            rows = x[:, start:end]
            torch.testing.assert_close(fused(rows, ours), layer(rows, theirs), rtol=1e-5, atol=1e-6)
        assert torch.equal(x, _x(num_rows, 9, 24))


def test_a_cache_takes_keys_and_values_joined_or_not() -> None:
    joined, apart, new = KeyValueCache(8), KeyValueCache(8), _x(2, 1, 2, 3, 5)
    for rows in (new, new.repeat_interleave(3, dim=0)):  # one of each line, then three side by side
        found = joined.write(rows)
        seen = apart.extend(KeyValues(rows[:, :, 0], rows[:, :, 1]))
        for ours, theirs in zip(found, seen, strict=True):
            assert torch.equal(ours.transpose(1, 2), theirs)
    assert joined.filled == apart.filled == 4


def test_each_layout_is_made_when_it_is_needed() -> None:
    layer = packed(nn.Sequential(nn.Linear(24, 40)), keep=False)[0]
    with torch.inference_mode():
        layer(_x(1, 24))
        assert "packed_weight" not in vars(layer)
        layer(_x(2, 24))
    assert "packed_weight" in vars(layer)


def test_few_queries_leave_the_context_unprojected() -> None:
    layer = CrossAttention(24, 32, 2)
    projected = []
    packed_layer = packed(nn.Sequential(layer), keep=False)[0]
    kv_proj = packed_layer.attn.kv_proj
    kv_proj.register_forward_hook(lambda *_: projected.append(1))
    with torch.inference_mode():
        packed_layer(_x(3, 1, 24), _x(3, 50, 32))
        assert not projected
        packed_layer(_x(3, 60, 24), _x(3, 50, 32))
    assert projected


def test_a_copy_serves_until_a_weight_changes(model: CoCa) -> None:
    first = packed(model, keep=True)
    assert packed(model, keep=True) is first
    weight = model.multimodal_decoder.lm_head.weight
    with torch.no_grad():
        weight[5, 5] += 1  # counted
    second = packed(model, keep=True)
    assert second is not first
    weight.data.add_(1)  # not counted by PyTorch
    third = packed(model, keep=True)
    assert third is not second
    model.multimodal_decoder.lm_head.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    assert packed(model, keep=True) is not third
    ids, tokens = torch.tensor([[1, 2, 3]]), model.encode_image(_x(1, 3, 16, 16)).tokens
    fresh = packed(model, keep=True)
    with torch.inference_mode():
        expected = next_token_logits(model, ids, tokens)
        torch.testing.assert_close(next_token_logits(fresh, ids, tokens), expected, rtol=0, atol=1e-4)


def test_a_copy_that_is_not_kept_is_made_anew(model: CoCa) -> None:
    assert packed(model, keep=False) is not packed(model, keep=False)
    assert model not in packing._kept


def test_the_model_is_left_as_it_was_and_can_go(model: CoCa) -> None:
    names = [name for name, _ in model.named_modules()]
    before = copy.deepcopy(model.state_dict())
    packed(model, keep=True)
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    gone = weakref.ref(model.text_decoder.blocks)
    reference = weakref.ref(model)
    assert gone() is not None
    packing._kept.pop(model)
    packed(model, keep=True)
    fixture_free = build_and_forget()
    gc.collect()
    assert fixture_free() is None
    assert reference() is model


def build_and_forget() -> "weakref.ref[nn.Module]":
    forgotten = nn.Sequential(nn.Linear(4, 4))
    packed(forgotten, keep=True)
    return weakref.ref(forgotten)


def test_what_is_watched_replaced_or_not_fp32_stays_as_it_is(model: CoCa) -> None:
    assert packed(nn.Sequential(nn.Linear(4, 4)).double(), keep=False)[0].weight.dtype == torch.float64
    watched = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    watched[0].register_forward_hook(lambda *_: None)
    copied = packed(watched, keep=False)
    assert [type(layer) for layer in copied] == [nn.Linear, PackedLinear]
    turning = SelfAttention(24, 2, rotary=Rotary(line_angles(9, 12)))
    turning.rotary.register_forward_hook(lambda *_: None)
    assert type(packed(nn.Sequential(turning), keep=False)[0]) is SelfAttention
    attn = CrossAttention(24, 32, 2)
    attn.k_norm = RMSNorm(12)  # keys that are normalized must be projected
    assert type(packed(nn.Sequential(attn), keep=False)[0]) is CrossAttention
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(model, keep=False) is model
