"""From an image to the tensor that the model sees."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode

from grr_coca.data.images import decode_image
from grr_coca.data.preprocess import Preprocess, to_pixels
from support import real_pairs


@pytest.fixture(scope="module")
def image():
    return decode_image(real_pairs(1)[0].image, "pictogram")


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (100, 37), (37, 100), (1, 10_000), (10_000, 1), (3, 2)])
def test_every_size_becomes_a_square_between_minus_one_and_one(size):
    pixels = Preprocess(32)(Image.effect_noise(size, 90).convert("RGB"))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert -1 <= pixels.min() <= pixels.max() <= 1


def test_white_is_one_and_black_is_minus_one():
    image = Image.new("RGB", (8, 8), "white")
    image.paste((0, 0, 0), (0, 0, 8, 4))
    pixels = Preprocess(8)(image)
    assert pixels[:, :4].eq(-1).all()
    assert pixels[:, 4:].eq(1).all()


def test_channels_are_red_green_blue_with_their_own_mean_and_deviation():
    preprocess = Preprocess(4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    pixels = preprocess(Image.new("RGB", (4, 4), (255, 0, 255)))
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, -1.0, 0.5]))


def test_an_image_of_the_right_size_keeps_every_pixel(image):
    restored = (Preprocess(64)(image) * 0.5 + 0.5) * 255
    np.testing.assert_array_equal(restored.round().byte().permute(1, 2, 0), np.asarray(image))


def test_the_centre_is_kept():
    image = Image.new("RGB", (300, 100), "white")
    image.paste((255, 0, 0), (100, 0, 200, 100))
    assert Preprocess(16).square(image).getcolors() == [(256, (255, 0, 0))]


@pytest.mark.parametrize("size", [(64, 64), (101, 64), (64, 101), (103, 64), (37, 300), (2000, 1501), (5, 3)])
@pytest.mark.parametrize("image_size", [16, 64])
def test_the_square_is_torchvisions_bit_by_bit(size, image_size):
    image = Image.merge("RGB", [Image.effect_noise(size, spread) for spread in (60, 90, 120)])
    expected = image
    if size != (image_size, image_size):
        expected = torchvision.center_crop(image, [min(size)])
        expected = torchvision.resize(expected, [image_size] * 2, InterpolationMode.BICUBIC, antialias=True)
    assert Preprocess(image_size).square(image).tobytes() == expected.tobytes()


def test_equal_images_give_equal_tensors(image):
    assert torch.equal(Preprocess(32)(image), Preprocess(32)(image.copy()))


def test_what_was_set_when_the_first_image_came_does_not_stay(image):
    preprocess = Preprocess(image_size=16, mean=(0.5, 0.4, 0.3))
    with torch.inference_mode():
        expected = preprocess(image)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(preprocess(image), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert preprocess(image).dtype == torch.float32
    assert preprocess.normalize(to_pixels(image).requires_grad_()).requires_grad
