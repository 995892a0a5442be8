"""Feed-forwards against the formula written by hand, in fp64."""

import math

import torch
from torch import Tensor, nn

from grr_coca.model.blocks import GEGLU, MLP


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _x() -> Tensor:
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_geglu_gates_with_the_exact_gelu():
    part, x = GEGLU(12, 20).double(), _x()
    hidden = _gelu(x @ part.gate_proj.weight.T) * (x @ part.up_proj.weight.T)
    torch.testing.assert_close(part(x), hidden @ part.down_proj.weight.T, rtol=1e-12, atol=1e-12)


def test_mlp_is_two_biased_maps_around_the_exact_gelu():
    part, x = MLP(12, 20).double(), _x()
    hidden = _gelu(x @ part.up_proj.weight.T + part.up_proj.bias)
    expected = hidden @ part.down_proj.weight.T + part.down_proj.bias
    torch.testing.assert_close(part(x), expected, rtol=1e-12, atol=1e-12)


def test_hidden_width_is_what_was_asked_for():
    for part in (GEGLU(12, 20), MLP(12, 20)):
        assert part.up_proj.weight.shape == (20, 12)
        assert part.down_proj.weight.shape == (12, 20)
    assert not [
        module for module in GEGLU(12, 20).modules() if isinstance(module, nn.Linear) and module.bias is not None
    ]
