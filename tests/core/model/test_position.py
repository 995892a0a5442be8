"""Positions: precision, devices and given positions. The formulas of RoPE are in `test_reference`."""

import pytest
import torch
from torch import Tensor, nn

from grr_coca.model.attention import PLAIN, LearnedPosition, NoPosition, Rotary, SelfAttention, line_angles

HEAD_DIM = 8


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_table_is_exact_far_from_the_start():
    angles = line_angles(500, HEAD_DIM)
    assert angles.dtype == torch.float64
    exact = torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(Rotary(angles).table.to(torch.complex128), exact, rtol=0, atol=1e-7)


def test_bf16_vectors_are_turned_in_fp32_and_rounded_once():
    rotary = Rotary(line_angles(300, HEAD_DIM))
    x = _random(1, 300, 2, 1, HEAD_DIM).bfloat16()
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
