import pytest
import torch
from torch import nn

from grr_coca.model.blocks import RMSNorm


def _with_weights(dim: int) -> RMSNorm:
    norm = RMSNorm(dim)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16)])
def test_equals_torchs_rms_norm(shape):
    norm, reference = _with_weights(16), nn.RMSNorm(16, eps=1e-6)
    reference.load_state_dict(norm.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x), reference(x))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 300.0])
def test_bf16_input_is_reduced_in_fp32(scale):
    norm = _with_weights(1024).to(torch.bfloat16)
    x = (scale * torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    rms = (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    exact = x.double() / rms * norm.weight.double()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    # One rounding to bf16's 8 significant bits, at the very end, and none before.
    assert ((y.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001).all()
