from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grr_coca.model.blocks import ConvStem, Patchify, RMSNorm

NORMS = {"rms": RMSNorm, "layer": partial(nn.LayerNorm, eps=1e-6)}


def _random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _stem(patch_size: int, embed_dim: int, norm: Callable[[int], nn.Module] = RMSNorm) -> ConvStem:
    """A stem whose weights are all different, norms and biases too."""
    stem = ConvStem(patch_size, embed_dim, norm)
    with torch.no_grad():
        for seed, parameter in enumerate(stem.parameters()):
            parameter.copy_(1 + 0.5 * _random(parameter.shape, seed))
    return stem.eval()


@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 16)])
def test_patchify_and_a_linear_map_are_a_convolution(height, width):
    images, weight = _random((2, 3, height, width)), _random((10, 3, 4, 4), 1)
    convolved = F.conv2d(images, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(Patchify(4)(images) @ weight.flatten(1).T, convolved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("patch_size", "embed_dim"), [(2, 6), (4, 24), (8, 20), (16, 16)])
def test_stem_is_its_formula(patch_size, embed_dim, norm):
    """Each position by itself, in fp64, with convolutions from images that are unfolded."""
    stem = _stem(patch_size, embed_dim, NORMS[norm])
    images = _random((2, 3, 2 * patch_size, 2 * patch_size))
    x, w = images.double(), {name: tensor.double() for name, tensor in stem.state_dict().items()}
    for i in range(len(stem.stages)):
        side = x.shape[-1] // 2
        seen = F.unfold(x, 3, padding=1, stride=2).mT  # B H·W 9·C
        x = seen @ w[f"stages.{i}.conv.weight"].T + w[f"stages.{i}.conv.bias"]
        if norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"stages.{i}.norm.weight"]
        x = (x + w.get(f"stages.{i}.norm.bias", 0)).clamp(min=0).mT.unflatten(2, (side, side))
    features = stem(images)
    assert features.shape == (2, 4, embed_dim)
    torch.testing.assert_close(features.double(), x.flatten(2).mT, rtol=1e-4, atol=1e-4)


def test_channels_double_up_to_the_width_of_the_encoder():
    for embed_dim, channels in ((128, [16, 32, 64, 128]), (96, [12, 24, 48, 96]), (100, [12, 25, 50, 100])):
        stages = ConvStem(16, embed_dim, RMSNorm).stages
        assert [stage.conv.out_features for stage in stages] == channels
        assert [stage.conv.in_features for stage in stages] == [9 * c for c in (3, *channels[:-1])]
    assert [stage.conv.out_features for stage in ConvStem(16, 4, RMSNorm).stages] == [1, 1, 2, 4]


def test_features_do_not_depend_on_the_batch_in_training():
    """BatchNorm has not."""
    stem, images = _stem(4, 8).train(), _random((5, 3, 8, 8))
    together = stem(images)
    for i in range(5):
        torch.testing.assert_close(stem(images[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)


# --- RMSNorm


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
