"""Attention against `torch.nn.MultiheadAttention` with the same weights, in fp64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU
from torch import Tensor, nn

from grr_coca.model.attention import (
    PLAIN,
    ROUND_TO,
    CachedLayout,
    CrossAttention,
    KeyValueCache,
    LearnedPosition,
    NoPosition,
    Rotary,
    SelfAttention,
    line_angles,
    pack_lengths,
    scaled_attention,
)
from grr_coca.model.blocks import RMSNorm


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _packed(attn: SelfAttention, x: Tensor) -> Tensor:
    """The output for sequences of one length that lie in one row, so that no token attends to a later one."""
    layout = pack_lengths(torch.full((len(x),), x.shape[1]), x.shape[1], x.device)
    return attn(layout.unpad(x), layout)[0, : layout.num_tokens].view_as(x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_self_attention_equals_torchs(causal, num_heads, bias):
    attn = SelfAttention(32, num_heads, rotary=None, bias=bias).double()
    reference = nn.MultiheadAttention(32, num_heads, bias=bias, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attn.qkv_proj.weight)
        reference.out_proj.weight.copy_(attn.out_proj.weight)
        if bias:
            reference.in_proj_bias.copy_(attn.qkv_proj.bias)
            reference.out_proj.bias.copy_(attn.out_proj.bias)
    x = _random(2, 7, 32)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    expected, _ = reference(x, x, x, attn_mask=mask, need_weights=False)
    found = _packed(attn, x) if causal else attn(x, PLAIN)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_cross_attention_of_another_width_matches_torch(bias):
    attn = CrossAttention(32, 20, num_heads=4, bias=bias).double()
    reference = nn.MultiheadAttention(32, 4, bias=bias, kdim=20, vdim=20, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        if bias:
            reference.in_proj_bias.copy_(torch.cat([attn.q_proj.bias, attn.kv_proj.bias]))
            reference.out_proj.bias.copy_(attn.out_proj.bias)
        reference.q_proj_weight.copy_(attn.q_proj.weight)
        reference.k_proj_weight.copy_(attn.kv_proj.weight[:32])
        reference.v_proj_weight.copy_(attn.kv_proj.weight[32:])
        reference.out_proj.weight.copy_(attn.out_proj.weight)
    x, context = _random(2, 7, 32), _random(2, 11, 20, seed=1)
    expected, _ = reference(x, context, context, need_weights=False)
    torch.testing.assert_close(attn(x, context), expected, rtol=1e-12, atol=1e-12)


# --- Normalized queries and keys ---


def _normalizing(scale: Tensor, rotary: Rotary | None = None) -> SelfAttention:
    attn = SelfAttention(32, 4, rotary, qk_norm=RMSNorm(8)).double()
    with torch.no_grad():
        attn.qk_norm.weight.copy_(scale)
    return attn


def test_qk_norm_is_per_head_and_before_rotation():
    rotary, x = Rotary(line_angles(7, 8)), _random(2, 7, 32)
    attn = _normalizing(_random(8, seed=2), rotary)
    q, k, v = (attn.qkv_proj(x)[..., 32 * i : 32 * (i + 1)].reshape(2, 7, 4, 8) for i in range(3))
    q, k = (p / (p.square().mean(-1, keepdim=True) + 1e-6).sqrt() * attn.qk_norm.weight for p in (q, k))
    q, k = (rotary(p[:, :, None], slice(7))[:, :, 0] for p in (q, k))
    logits = torch.einsum("bqhc,bkhc->bhqk", q, k) / 8**0.5
    weights = logits.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    expected = attn.out_proj(torch.einsum("bhqk,bkhc->bqhc", weights, v).reshape(2, 7, 32))
    # The rotary tables are of fp32.
    torch.testing.assert_close(_packed(attn, x), expected, rtol=1e-6, atol=1e-6)


def test_rows_in_a_row_share_a_context_as_if_each_had_its_own():
    attn, x, context = CrossAttention(32, 20, 4).double(), _random(6, 3, 32), _random(2, 11, 20, seed=1)
    torch.testing.assert_close(attn(x, context), attn(x, context.repeat_interleave(3, dim=0)))


def test_context_may_be_projected_beforehand():
    attn, x, context = CrossAttention(32, 20, 4).double(), _random(2, 3, 32), _random(2, 11, 20, seed=1)
    assert torch.equal(attn(x, attn.project(context)), attn(x, context))


@pytest.mark.parametrize("rotary", [None, Rotary(line_angles(9, 8))])
def test_token_by_token_with_a_cache_is_causal_attention(rotary):
    attn, x, cache = SelfAttention(32, 4, rotary), _random(2, 9, 32).float(), KeyValueCache(9)
    whole = _packed(attn, x)
    for t in range(9):
        layout = CachedLayout(cache, slice(t, t + 1), "all")
        torch.testing.assert_close(attn(x[:, t : t + 1], layout), whole[:, t : t + 1], rtol=0, atol=1e-6)


# --- Scores, in the precisions and with the masks of the model, against a reference in fp64

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


def _inputs(queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2, queries, 8), (3, 2, keys, 8), (3, 2, keys, 8))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def _reference(q: Tensor, k: Tensor, v: Tensor, is_seen: Tensor) -> Tensor:
    scores = torch.einsum("bhld,bhsd->bhls", q, k) / 8**0.5
    weights = scores.exp() * is_seen
    return torch.einsum("bhls,bhsd->bhld", weights / weights.sum(-1, keepdim=True), v)


def _value_and_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["all", "causal", "tensor"])
def test_value_and_gradients_are_the_references(dtype, kind):
    queries, keys = (6, 6) if kind == "causal" else (5, 7)
    inputs = _inputs(queries, keys, dtype)
    is_seen = torch.ones(queries, keys, dtype=torch.bool)
    if kind == "causal":
        is_seen = is_seen.tril()
    if kind == "tensor":
        is_seen = is_seen.tril(2)
    mask = is_seen[None, None] if kind == "tensor" else kind
    ours = _value_and_gradients(scaled_attention(*inputs, mask), inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for mine, expected in zip(ours, _value_and_gradients(_reference(*exact, is_seen), exact), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_masked_keys_do_not_affect_the_result(dtype):
    q, k, v = _inputs(5, 5, dtype)
    before = scaled_attention(q, k, v, "causal")
    with torch.no_grad():
        k[:, :, 3:] += 100
        v[:, :, 3:] -= 100
    assert torch.equal(scaled_attention(q, k, v, "causal")[:, :, :3], before[:, :, :3])


# --- Positions: precision, devices and given positions. The formulas of RoPE are in `test_reference`

HEAD_DIM = 8


def _random_fp32(*shape: int) -> Tensor:
    return _random(*shape).float()


def test_table_is_exact_far_from_the_start():
    angles = line_angles(500, HEAD_DIM)
    assert angles.dtype == torch.float64
    exact = torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(Rotary(angles).table.to(torch.complex128), exact, rtol=0, atol=1e-7)


def test_bf16_vectors_are_turned_in_fp32_and_rounded_once():
    rotary = Rotary(line_angles(300, HEAD_DIM))
    x = _random_fp32(1, 300, 2, 1, HEAD_DIM).bfloat16()
    assert torch.equal(rotary(x, PLAIN.positions), rotary(x.float(), PLAIN.positions).bfloat16())


def test_table_moves_with_the_model_and_is_not_saved():
    rotary = Rotary(line_angles(5, HEAD_DIM))
    assert rotary.state_dict() == {}
    assert rotary.to("meta").table.device.type == "meta"


def test_values_are_never_turned():
    plain = SelfAttention(16, 2, rotary=None)
    turning = SelfAttention(16, 2, rotary=Rotary(line_angles(9, HEAD_DIM)))
    with torch.no_grad():
        plain.qkv_proj.weight[:32] = 0  # queries and keys of zero: every token reads the mean of all values
    turning.load_state_dict(plain.state_dict())
    x = _random_fp32(2, 9, 16)
    torch.testing.assert_close(turning(x, PLAIN), plain(x, PLAIN))


def test_given_positions_turn_like_their_places_in_the_line():
    rotary = Rotary(line_angles(10, 8))
    x = torch.randn(2, 10, 2, 3, 8)
    whole = rotary(x, slice(10))
    kept = torch.tensor([[1, 4, 9], [0, 2, 3]])
    rows = torch.arange(2)[:, None]
    assert torch.equal(rotary(x[rows, kept], kept), whole[rows, kept])
    for positions in (torch.tensor([5, 6]), slice(5, 7)):
        assert torch.equal(rotary(x[:, 5:7], positions), whole[:, 5:7])


# --- Learned


@pytest.mark.parametrize("length", [1, 4, 6])
def test_adds_the_vector_of_each_position(length):
    position = LearnedPosition(6, 8)
    nn.init.normal_(position.embedding)
    x = torch.randn(2, length, 8)
    y = position(x, slice(length))
    for t in range(length):
        assert torch.equal(y[:, t], x[:, t] + position.embedding[t])


def test_adds_the_vectors_of_given_positions():
    position = LearnedPosition(6, 8)
    nn.init.normal_(position.embedding)
    x = torch.randn(2, 2, 8)
    assert torch.equal(position(x, torch.tensor([3, 5])), x + position.embedding[[3, 5]])
    assert torch.equal(position(x, slice(3, 5)), x + position.embedding[[3, 4]])


def test_without_positions_nothing_is_added():
    x = torch.randn(2, 3, 8)
    assert NoPosition()(x, torch.tensor([3, 4, 5])) is x


# --- Sequences in one row, and separated again


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6), room=st.integers(0, 3))
def test_packing_drops_the_padding_and_puts_it_back(lengths, room):
    longest = max(lengths) + room
    layout = pack_lengths(torch.tensor(lengths), longest, CPU)
    padded = torch.arange(len(lengths) * longest * 2.0).reshape(len(lengths), longest, 1, 2)
    packed = layout.unpad(padded)
    real, more = packed[0].split([layout.num_tokens, packed.shape[1] - layout.num_tokens])
    assert torch.equal(real, torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)]))
    assert packed.shape[1] % ROUND_TO == 0
    assert len(more) < ROUND_TO
    assert torch.equal(more, padded[0, 0].expand_as(more))
    apart = layout.pad(packed)
    assert apart.shape == padded.shape
    for row, original, length in zip(apart, padded, lengths, strict=True):
        assert torch.equal(row[:length], original[:length])
        assert torch.equal(row[length:], original[length - 1].expand(longest - length, 1, 2)), "its own last token"
    positions = layout.positions[: layout.num_tokens].tolist()
    assert positions == [t for length in lengths for t in range(length)]
    assert torch.equal(layout.unpad(apart), packed)


def test_padding_has_no_part_in_gradients():
    layout = pack_lengths(torch.tensor([1, 3]), 3, CPU)
    packed = torch.randn(1, ROUND_TO, 1, 2, requires_grad=True)
    layout.unpad(layout.pad(packed) * torch.tensor(2.0))[:, : layout.num_tokens].sum().backward()
    assert torch.equal(packed.grad[:, :4], torch.full((1, 4, 1, 2), 2.0))
    assert torch.equal(packed.grad[:, 4:], torch.zeros(1, ROUND_TO - 4, 1, 2))


def test_queries_keys_and_values_are_padded_alike():
    layout = pack_lengths(torch.tensor([1, 3]), 3, CPU)
    q, k, v = (torch.randn(1, ROUND_TO, 2, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    queries, key_values, mask = layout.attention_inputs(torch.stack([q, k], dim=2), v)
    for padded, packed in zip((queries, *key_values), (q, k, v), strict=True):
        assert torch.equal(padded, layout.pad(packed))
    assert mask == "causal"
