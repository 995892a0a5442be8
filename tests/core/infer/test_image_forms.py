"""Every form that an image comes in gives the same pixels, and what is none is named."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import encode_image

from grr_coca.common.errors import UserError
from grr_coca.data.image_forms import to_rgb
from grr_coca.infer.image_text_model import as_list

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def pixels(image, name="image 1"):
    opened = to_rgb(image, name)
    assert opened.mode == "RGB"
    return np.asarray(opened)


FORMS = {
    "Pillow": Image.fromarray(RGB),
    "array": RGB,
    "not contiguous": RGB[::-1, ::-1].copy()[::-1, ::-1],
    "floating point": RGB.astype(np.float64) / 255,
    "half precision": (RGB / 255).astype(np.float32),
    "tensor": torch.from_numpy(RGB).permute(2, 0, 1),
    "tensor of floating point": torch.from_numpy(RGB).permute(2, 0, 1) / 255,
    "opaque": np.concatenate([RGB, np.full((5, 7, 1), 255, dtype=np.uint8)], axis=2),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_pixels(form):
    assert np.array_equal(pixels(form), RGB)


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["str", "Path"])
def test_path_gives_the_pixels_of_its_file(tmp_path, as_path):
    path = tmp_path / "image.png"
    path.write_bytes(encode_image(Image.fromarray(RGB)))
    assert np.array_equal(pixels(as_path(path)), RGB)


@pytest.mark.parametrize(
    "form",
    [GREY, GREY[:, :, None], torch.from_numpy(GREY), torch.from_numpy(GREY)[None], Image.fromarray(GREY)],
    ids=["H W", "H W 1", "tensor H W", "tensor 1 H W", "Pillow"],
)
def test_grey_becomes_three_equal_channels(form):
    assert np.array_equal(pixels(form), np.stack([GREY] * 3, axis=2))


def test_bfloat16_is_read_within_its_precision():
    tensor = (torch.from_numpy(RGB).permute(2, 0, 1) / 255).to(torch.bfloat16)
    assert np.abs(pixels(tensor).astype(int) - RGB).max() <= 1


def test_transparent_pixels_become_white():
    clear = np.concatenate([RGB, np.zeros((5, 7, 1), dtype=np.uint8)], axis=2)
    assert (pixels(clear) == 255).all()
    assert (pixels(Image.fromarray(clear)) == 255).all()


def test_rotation_of_an_opened_file_is_honoured(tmp_path):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(RGB, -1)
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(pixels(opened), expected)
    assert np.array_equal(pixels(tmp_path / "turned.png"), expected)


def test_deep_grey_is_scaled_and_not_cut():
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert np.array_equal(pixels(deep)[:, :, 0], GREY)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 4, 5), dtype=np.uint8), "3 × 4 × 5"),
        (torch.zeros(5, 7, 3), "C H W"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "0 × 4 × 3"),
        (np.zeros(7), "7"),
        (np.array(3.0), "a single number"),
        (RGB.astype(np.int64), "int64"),
        (RGB.astype(np.float32), "must be within 0 … 1"),
        (RGB / 127.5 - 1, "do not normalize images"),
        (np.full((2, 2), np.nan), "nan"),
        (b"\x89PNG", "bytes"),
        (None, "NoneType"),
        ("nowhere/cat.png", "nowhere/cat.png: no such file"),
        ("null\0byte.png", "embedded null"),
        (".", "expected a file, found a folder; pass a file in it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_images_are_named(image, message):
    with pytest.raises(UserError) as error:
        to_rgb(image, "image 3")
    assert message in str(error.value)
    assert "image 3" in str(error.value) or isinstance(image, str)


def test_truncated_file_that_pillow_has_opened_is_named(tmp_path):
    (tmp_path / "half.png").write_bytes(encode_image(Image.fromarray(np.tile(RGB, (20, 20, 1))))[:-400])
    with Image.open(tmp_path / "half.png") as half, pytest.raises(UserError, match="image 2: corrupt"):
        to_rgb(half, "image 2")


def test_names_an_opened_file_with_a_corrupt_chunk(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    before, first, *others = encode_image(Image.fromarray(noise)).split(b"IDAT")
    assert others, "pixels in several chunks"
    (tmp_path / "broken.png").write_bytes(b"IDAT".join([before, first]) + bytes(4) + b"IDAT".join(others))
    with Image.open(tmp_path / "broken.png") as broken, pytest.raises(UserError, match="image 2: corrupt"):
        to_rgb(broken, "image 2")


@pytest.mark.parametrize(
    ("images", "count", "is_single"),
    [
        ("cat.png", 1, True),
        (Image.fromarray(RGB), 1, True),
        (RGB, 1, True),
        (GREY, 1, True),
        (torch.zeros(3, 4, 4), 1, True),
        (np.stack([RGB] * 4), 4, False),
        (torch.zeros(2, 3, 4, 4), 2, False),
        (["cat.png"], 1, False),
        ((RGB, "cat.png"), 2, False),
        ([], 0, False),
        ((name for name in "abc"), 3, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_distinguishes_one_image_from_many(images, count, is_single):
    many, single = as_list(images)
    assert (len(many), single) == (count, is_single)
