from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grr_coca.model.blocks import Convolution, ConvStem, Patchify, RMSNorm

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


def test_patches_come_in_raster_order_and_keep_channel_row_column():
    image = torch.arange(3 * 4 * 4).reshape(1, 3, 4, 4).float()
    patches = Patchify(2)(image)
    assert patches.shape == (1, 4, 12)
    assert patches[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23, 34, 35, 38, 39]  # upper right
    assert patches[0, 2, :4].tolist() == [8, 9, 12, 13]  # lower left


def test_a_convolution_is_the_sum_over_its_nine_places():
    """Written out: output (r, c) reads rows 2r - 1 to 2r + 1 and columns 2c - 1 to 2c + 1; what lies outside is 0."""
    conv = Convolution(2, 5)
    nn.init.normal_(conv.weight, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(conv.bias, generator=torch.Generator().manual_seed(2))
    x = _random((3, 2, 6, 4))
    y = conv(x)
    assert y.shape == (3, 5, 3, 2)
    for row in range(3):
        for column in range(2):
            seen = torch.zeros(3, 2, 3, 3)
            for i in range(3):
                for j in range(3):
                    r, c = 2 * row - 1 + i, 2 * column - 1 + j
                    if 0 <= r < 6 and 0 <= c < 4:
                        seen[:, :, i, j] = x[:, :, r, c]
            expected = seen.flatten(1) @ conv.weight.T + conv.bias
            torch.testing.assert_close(y[:, :, row, column], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("patch_size", "embed_dim"), [(2, 6), (4, 24), (8, 20), (16, 16)])
def test_a_stem_is_its_formula(patch_size, embed_dim, norm):
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


def test_features_come_in_raster_order_and_see_their_patch_and_nothing_below_or_to_the_right():
    """Each stage reads one more row and column above and to the left than the patch has, and so 2^k - 1 pixels in all
    lie in patches before it."""
    stem, images = _stem(4, 8), _random((30, 3, 16, 16)).requires_grad_()
    features = stem(images)  # 30 16 8
    for patch in (0, 6, 15):
        (gradient,) = torch.autograd.grad(features[:, patch].sum(), images, retain_graph=True)
        rows, columns = gradient.abs().sum((0, 1)).nonzero().unbind(1)
        top, left = 4 * (patch // 4), 4 * (patch % 4)
        assert (rows.min(), columns.min()) == (max(0, top - 3), max(0, left - 3))
        assert (rows.max(), columns.max()) == (top + 3, left + 3)


def test_an_image_has_the_same_features_alone_and_in_a_batch_in_training_too():
    """BatchNorm has not."""
    stem, images = _stem(4, 8).train(), _random((5, 3, 8, 8))
    together = stem(images)
    for i in range(5):
        torch.testing.assert_close(stem(images[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)
