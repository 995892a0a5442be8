import pytest
import torch
from torch import nn

from grr_coca.layers.position import LearnedPosition


@pytest.mark.parametrize("length", [1, 4, 6])
def test_adds_the_vector_of_each_position(length: int) -> None:
    position = LearnedPosition(6, 8)
    nn.init.normal_(position.embedding)
    x = torch.randn(2, length, 8)
    y = position(x)
    for t in range(length):
        assert torch.equal(y[:, t], x[:, t] + position.embedding[t])
