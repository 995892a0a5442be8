import pytest
import torch
from torch import nn

from grr_coca.layers.position import LearnedPosition, NoPosition


@pytest.mark.parametrize("length", [1, 4, 6])
def test_adds_the_vector_of_each_position(length: int) -> None:
    position = LearnedPosition(6, 8)
    nn.init.normal_(position.embedding)
    x = torch.randn(2, length, 8)
    y = position(x, slice(length))
    for t in range(length):
        assert torch.equal(y[:, t], x[:, t] + position.embedding[t])


def test_adds_the_vectors_of_given_positions() -> None:
    position = LearnedPosition(6, 8)
    nn.init.normal_(position.embedding)
    x = torch.randn(2, 2, 8)
    assert torch.equal(position(x, torch.tensor([3, 5])), x + position.embedding[[3, 5]])
    assert torch.equal(position(x, slice(3, 5)), x + position.embedding[[3, 4]])


def test_without_positions_nothing_is_added() -> None:
    x = torch.randn(2, 3, 8)
    assert NoPosition()(x, torch.tensor([3, 4, 5])) is x
