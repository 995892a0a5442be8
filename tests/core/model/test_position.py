"""Positions: RoPE against a naive loop over complex numbers and its promise that only differences count, and learned
vectors."""

import cmath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from grr_coca.model.attention import PLAIN, LearnedPosition, NoPosition, Rotary, SelfAttention, grid_angles, line_angles

HEAD_DIM = 8


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _turn_naively(vector: list[float], angles: list[float]) -> list[float]:
    turned = []
    for c, angle in enumerate(angles):
        z = complex(vector[2 * c], vector[2 * c + 1]) * cmath.exp(1j * angle)
        turned += [z.real, z.imag]
    return turned


def _line_angles_naively(position: int) -> list[float]:
    channels = HEAD_DIM // 2
    return [position / 10_000 ** (c / channels) for c in range(channels)]


def _grid_angles_naively(row: int, column: int) -> list[float]:
    channels = HEAD_DIM // 4
    rows = [row / 100 ** (c / channels) for c in range(channels)]
    columns = [column / 100 ** (c / channels) for c in range(channels)]
    return rows + columns


def _assert_turns(rotary: Rotary, expected_angles: list[list[float]]) -> None:
    x = _random(2, len(expected_angles), 2, 3, HEAD_DIM)
    turned = rotary(x, slice(len(expected_angles)))
    expected = torch.empty(x.shape, dtype=torch.float64)
    for b, t, n, h in torch.cartesian_prod(*(torch.arange(size) for size in x.shape[:4])).tolist():
        expected[b, t, n, h] = torch.tensor(_turn_naively(x[b, t, n, h].tolist(), expected_angles[t])).double()
    torch.testing.assert_close(turned.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_line_turns_channel_pairs_by_position():
    _assert_turns(Rotary(line_angles(50, HEAD_DIM)), [_line_angles_naively(t) for t in range(50)])


def test_a_shorter_sequence_takes_the_first_positions():
    _assert_turns(Rotary(line_angles(50, HEAD_DIM)), [_line_angles_naively(t) for t in range(7)])


def test_a_grid_turns_the_first_half_by_row_and_the_second_by_column():
    raster = [_grid_angles_naively(row, column) for row in range(4) for column in range(4)]
    _assert_turns(Rotary(grid_angles(4, HEAD_DIM)), raster)


def test_the_first_position_is_not_turned():
    x = _random(1, 1, 2, 1, HEAD_DIM)
    assert torch.equal(Rotary(line_angles(3, HEAD_DIM))(x, slice(1)), x)


def _dot_products(rotary: Rotary, seed: int) -> Tensor:
    """Of one query and one key, each put at every position: row = position of the query."""
    num_positions = len(rotary.table)
    qk = _random(1, 1, 2, 1, HEAD_DIM, seed=seed).expand(1, num_positions, 2, 1, HEAD_DIM)
    q, k = rotary(qk, PLAIN.positions)[0, :, :, 0].unbind(1)
    return q @ k.T


@given(seed=st.integers(0, 2**31), i=st.integers(0, 30), j=st.integers(0, 30), shift=st.integers(0, 20))
def test_on_a_line_only_the_difference_of_positions_counts(seed, i, j, shift):
    dots = _dot_products(Rotary(line_angles(51, HEAD_DIM)), seed)
    torch.testing.assert_close(dots[i, j], dots[i + shift, j + shift], rtol=1e-4, atol=1e-4)


@given(
    seed=st.integers(0, 2**31),
    query=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    key=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    shift=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_on_a_grid_only_the_differences_of_row_and_column_count(seed, query, key, shift):
    side = 7
    dots = _dot_products(Rotary(grid_angles(side, HEAD_DIM)), seed).reshape(side, side, side, side)
    (qr, qc), (kr, kc), (dr, dc) = query, key, shift
    torch.testing.assert_close(dots[qr, qc, kr, kc], dots[qr + dr, qc + dc, kr + dr, kc + dc], rtol=1e-4, atol=1e-4)


def test_on_a_grid_rows_and_columns_are_told_apart():
    dots = _dot_products(Rotary(grid_angles(3, HEAD_DIM)), seed=0)
    one_right, one_down = dots[0, 1], dots[0, 3]
    assert abs(one_right - one_down) > 0.01
    assert abs(dots[0, 0] - one_right) > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_change_of_type_does_not_touch_the_angles(dtype):
    attn = SelfAttention(16, 2, rotary=Rotary(line_angles(500, HEAD_DIM)))
    assert attn.rotary is not None
    before = attn.rotary.table.clone()
    attn.to(dtype)
    assert attn.qkv_proj.weight.dtype == dtype
    assert attn.rotary.table.dtype == torch.complex64
    assert torch.equal(attn.rotary.table, before)


def test_the_table_is_exact_far_from_the_start():
    angles = line_angles(500, HEAD_DIM)
    assert angles.dtype == torch.float64
    exact = torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(Rotary(angles).table.to(torch.complex128), exact, rtol=0, atol=1e-7)


def test_bf16_vectors_are_turned_in_fp32_and_rounded_once():
    rotary = Rotary(line_angles(300, HEAD_DIM))
    x = _random(1, 300, 2, 1, HEAD_DIM).bfloat16()
    assert torch.equal(rotary(x, PLAIN.positions), rotary(x.float(), PLAIN.positions).bfloat16())


def test_the_table_follows_the_model_to_its_device_and_is_no_weight():
    rotary = Rotary(line_angles(5, HEAD_DIM))
    assert rotary.state_dict() == {}
    assert rotary.to("meta").table.device.type == "meta"


def test_values_are_never_turned():
    plain = SelfAttention(16, 2, rotary=None)
    turning = SelfAttention(16, 2, rotary=Rotary(line_angles(9, HEAD_DIM)))
    with torch.no_grad():
        plain.qkv_proj.weight[:32] = 0  # queries and keys of zero: every token reads the mean of all values
    turning.load_state_dict(plain.state_dict())
    x = _random(2, 9, 16)
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
