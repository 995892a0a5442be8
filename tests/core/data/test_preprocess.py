"""From an image to the pixels that a model sees, and to the tensor that PyTorch takes."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import real_pairs

from grr_coca.data.batch import normalize, to_input, to_uint8_pixels
from grr_coca.data.isolated import decode_image
from grr_coca.data.preprocess import Preprocess


@pytest.fixture(scope="module")
def image():
    return decode_image(real_pairs(1)[0].image, "pictogram")


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (100, 37), (37, 100), (1, 10_000), (10_000, 1), (3, 2)])
def test_every_size_becomes_a_square_between_minus_one_and_one(size):
    pixels = to_input(Image.effect_noise(size, 90).convert("RGB"), Preprocess(32))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert -1 <= pixels.min() <= pixels.max() <= 1


def test_white_is_one_and_black_is_minus_one():
    image = Image.new("RGB", (8, 8), "white")
    image.paste((0, 0, 0), (0, 0, 8, 4))
    pixels = to_input(image, Preprocess(8))
    assert pixels[:, :4].eq(-1).all()
    assert pixels[:, 4:].eq(1).all()


def test_channels_are_rgb_with_separate_mean_and_deviation():
    preprocess = Preprocess(4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    pixels = to_input(Image.new("RGB", (4, 4), (255, 0, 255)), preprocess)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, -1.0, 0.5]))


def test_image_of_the_right_size_keeps_every_pixel(image):
    pixels = Preprocess(64)(image)
    assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
    np.testing.assert_array_equal(pixels, np.asarray(image))
    np.testing.assert_array_equal(to_uint8_pixels(image, Preprocess(64)).permute(1, 2, 0), pixels)
    restored = (to_input(image, Preprocess(64)) * 0.5 + 0.5) * 255
    np.testing.assert_array_equal(restored.round().byte().permute(1, 2, 0), pixels)


def test_pixels_can_be_changed(image):
    """They are no view of Pillow's memory, which is read-only."""
    pixels, before = Preprocess(64)(image), image.tobytes()
    pixels[:] = 0
    assert not pixels.any()
    assert image.tobytes() == before


def test_centre_is_kept():
    image = Image.new("RGB", (300, 100), "white")
    image.paste((255, 0, 0), (100, 0, 200, 100))
    assert Preprocess(16).square(image).getcolors() == [(256, (255, 0, 0))]


@pytest.mark.parametrize("size", [(64, 64), (101, 64), (64, 101), (103, 64), (37, 300), (2000, 1501), (5, 3)])
@pytest.mark.parametrize("image_size", [16, 64])
def test_square_equals_torchvision_bitwise(size, image_size):
    import torchvision.transforms.v2.functional as torchvision  # late: half a second, in each worker
    from torchvision.transforms import InterpolationMode

    image = Image.merge("RGB", [Image.effect_noise(size, spread) for spread in (60, 90, 120)])
    expected = image
    if size != (image_size, image_size):
        expected = torchvision.center_crop(image, [min(size)])
        expected = torchvision.resize(expected, [image_size] * 2, InterpolationMode.BICUBIC, antialias=True)
    assert Preprocess(image_size).square(image).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(900, 60), (60, 900), (331, 100)])
def test_long_image_resizes_only_its_middle(monkeypatch, size):
    image = Image.merge("RGB", [Image.effect_noise(size, spread) for spread in (60, 90, 120)])
    preprocess = Preprocess(32, order="resize_then_crop")
    whole = preprocess(image).astype(int)
    monkeypatch.setattr("grr_coca.data.preprocess._MAX_RESIZED_PIXELS", 32 * 32)
    resized = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **o: resized.append(a[1]) or resize(*a, **o))
    assert abs(preprocess(image).astype(int) - whole).max() <= 1
    assert resized == [(32, 32)]


def test_equal_images_give_equal_tensors(image):
    assert torch.equal(to_input(image, Preprocess(32)), to_input(image.copy(), Preprocess(32)))


def test_settings_of_the_first_image_are_not_kept(image):
    preprocess = Preprocess(image_size=16, mean=(0.5, 0.4, 0.3))
    with torch.inference_mode():
        expected = to_input(image, preprocess)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(to_input(image, preprocess), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert to_input(image, preprocess).dtype == torch.float32
    assert normalize(torch.rand(3, 16, 16, requires_grad=True), preprocess).requires_grad
