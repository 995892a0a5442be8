from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from grr_coca.config import CoCaConfig
from grr_coca.model import build
from grr_coca.model.image_encoder import patchify


@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 16)])
def test_patchify_and_a_linear_map_are_a_convolution(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, height, width, generator=generator)
    weight = torch.randn(10, 3, 4, 4, generator=generator)
    convolved = F.conv2d(images, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(images, 4) @ weight.flatten(1).T, convolved, rtol=1e-5, atol=1e-5)


def test_patches_come_in_raster_order_and_keep_channel_row_column() -> None:
    image = torch.arange(3 * 4 * 4).reshape(1, 3, 4, 4).float()
    patches = patchify(image, 2)
    assert patches.shape == (1, 4, 12)
    assert patches[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23, 34, 35, 38, 39]  # upper right
    assert patches[0, 2, :4].tolist() == [8, 9, 12, 13]  # lower left


@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca_rope_1d", "baseline_coca"])
def test_every_kind_of_position_tells_patches_apart(tiny_config: Callable[..., CoCaConfig], preset: str) -> None:
    """Without positions, an image with two patches exchanged would give the same embedding."""
    model = build(tiny_config(preset)).eval()
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exchanged = image.clone()
    exchanged[..., :4, :4], exchanged[..., 4:8, 8:12] = image[..., 4:8, 8:12], image[..., :4, :4]
    with torch.no_grad():
        moved = model.encode_image(image).embedding - model.encode_image(exchanged).embedding
    assert moved.abs().max() > 1e-5
