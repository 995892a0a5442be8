"""Drawings are framed: what has the colour of the border is cut away, and the rest is made square with a margin."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support import real_pairs

from grr_coca.data.isolated import decode_image
from grr_coca.data.preprocess import Frame, Framing, Preprocess

PICTURES = Path(__file__).parent / "pictures"
FRAMED = Preprocess(64, framing=Framing())


def drawing(size: tuple[int, int], box: tuple[int, int, int, int], ink="black", ground="white") -> Image.Image:
    """A box on a ground; right and bottom are outside of it."""
    image = Image.new("RGB", size, ground)
    image.paste(ink, box)
    return image


@pytest.mark.parametrize(("ink", "ground"), [("black", "white"), ("white", "navy"), ((200, 200, 200), (150, 150, 150))])
def test_drawing_is_in_the_middle_of_a_square_with_a_margin(ink, ground):
    """Whatever colours, margins and place it has."""
    framing = Framing(margin=0.1)
    frame = framing.frame(drawing((300, 200), (20, 10, 100, 90), ink, ground))
    assert frame.box == (10, 0, 110, 100)
    square = frame.cut(drawing((300, 200), (20, 10, 100, 90), ink, ground))
    assert list(square.getdata()) == list(drawing((100, 100), (10, 10, 90, 90), ink, ground).getdata())


def test_oblong_drawing_is_padded_with_its_background():
    image = drawing((100, 40), (5, 15, 95, 25), "red", "green")
    frame = Framing(margin=0.0).frame(image)
    assert frame == Frame((5, -25, 95, 65), (0, 128, 0))
    assert list(frame.cut(image).getdata()) == list(drawing((90, 90), (0, 40, 90, 50), "red", "green").getdata())


def test_wide_margins_and_places_off_centre_give_the_same_square():
    plain = decode_image(real_pairs(1)[0].image, "icon")
    squares = []
    for side, left, top in ((100, 30, 5), (96, 16, 16), (128, 60, 10)):
        image = Image.new("RGB", (side, side), plain.getpixel((0, 0)))
        image.paste(plain, (left, top))
        squares.append(FRAMED(image))
    for square in squares[1:]:
        np.testing.assert_array_equal(square, squares[0])


def test_enlargement_is_bounded():
    """A dot stays small, and a minus sign is no bar that fills the picture."""
    frame = Framing().frame(drawing((90, 120), (70, 10, 74, 14)))
    assert frame.box == (57, -3, 87, 27)
    assert Framing(max_enlargement=1).frame(drawing((90, 90), (40, 40, 50, 50))).box == (0, 0, 90, 90)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.new("RGB", (50, 30), "white"), id="white"),
        pytest.param(Image.new("RGB", (50, 30), "red"), id="of one colour"),
        pytest.param(Image.new("RGB", (1, 1), "red"), id="one pixel"),
        pytest.param(drawing((50, 30), (10, 10, 20, 20), (140, 140, 140), (100, 100, 100)), id="hardly drawn"),
        pytest.param(Image.effect_noise((80, 50), 120).convert("RGB"), id="noise"),
        pytest.param(Image.linear_gradient("L").convert("RGB"), id="gradient"),
        pytest.param(drawing((60, 60), (0, 30, 60, 60), "green", "skyblue"), id="sky over ground"),
        pytest.param(drawing((60, 60), (20, 0, 40, 60)), id="cropped too tight"),
    ],
)
def test_other_images_are_unchanged(image):
    assert FRAMED.framing.frame(image) is None
    np.testing.assert_array_equal(FRAMED(image), replace(FRAMED, framing=None)(image))


def test_drawing_that_reaches_all_sides_is_unchanged():
    image = Image.new("RGB", (100, 100), "white")
    ImageDraw.Draw(image).polygon([(50, 0), (99, 50), (50, 99), (0, 50)], "black")
    assert Framing().frame(image) is None


def test_large_centred_drawing_is_unchanged():
    """Its maker has framed it, so no pixel is resized for nothing."""
    framed = Framing(min_share=0.7, max_shift=0.1)
    assert framed.frame(drawing((100, 100), (15, 20, 85, 80))) is None
    assert framed.frame(drawing((100, 100), (25, 20, 95, 80))) is None
    for size, box in (((100, 100), (15, 20, 84, 80)), ((100, 100), (26, 20, 96, 80)), ((101, 100), (15, 20, 85, 80))):
        assert framed.frame(drawing(size, box)) is not None


@pytest.mark.parametrize("name", ["darktable-display-p3.jpg", "imagemagick-cmyk.jpg", "libheif.heic", "libavif.avif"])
def test_photographs_that_fill_their_frame_are_unchanged(name):
    if name.endswith(".heic"):
        pytest.importorskip("pillow_heif")
    image = FRAMED.decode((PICTURES / name).read_bytes(), name)
    assert FRAMED.framing.frame(image) is None


def test_noise_of_lossy_files_is_ground():
    image = drawing((64, 64), (20, 24, 40, 44))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    found = Framing().frame(Image.open(file).convert("RGB")).box
    assert np.abs(np.subtract(found, Framing().frame(image).box)).max() <= 2


def test_square_is_not_framed_again():
    """Squares go through several hands. The second frame would be another one."""
    image = drawing((300, 200), (20, 10, 100, 90))
    square = FRAMED.square(image)
    assert FRAMED.square(square) is square
    thin = Framing(margin=0.3)
    for framing in (Framing(), thin):
        preprocess = Preprocess(64, framing=framing)
        once = preprocess.square(image)
        np.testing.assert_array_equal(preprocess(once), np.asarray(once))
        np.testing.assert_array_equal(preprocess(once.convert("RGB")), np.asarray(once))
    # What is a square already is framed once, and its own mark stays with the new image.
    small = drawing((64, 64), (20, 24, 40, 44))
    assert FRAMED.square(small).tobytes() != small.tobytes()
    blank = Image.new("RGB", (64, 64), "white")
    FRAMED.square(blank)
    assert not blank.info


def test_orders_and_visible_box_agree():
    image = drawing((300, 200), (20, 10, 100, 90))
    other = replace(FRAMED, order="resize_then_crop")
    np.testing.assert_array_equal(other(image), FRAMED(image))
    left, top, right, bottom = FRAMED.visible_box(image)
    assert FRAMED.cut(image).size == (right - left, bottom - top)
    plain = Preprocess(64)
    assert plain.visible_box(image) == (50, 0, 250, 200)
    assert plain.cut(image).tobytes() == image.crop((50, 0, 250, 200)).tobytes()


def test_long_thin_drawing_makes_no_huge_square(monkeypatch):
    line = drawing((60_000, 40), (100, 18, 59_900, 22))
    assert FRAMED.cut(line).size == (4096, 4096), "and not 71,190 pixels high and wide"
    long = drawing((900, 60), (10, 20, 890, 40), ink="red")
    whole = FRAMED(long).astype(int)
    monkeypatch.setattr("grr_coca.data.preprocess._MAX_SIDE", 256)
    assert FRAMED.cut(long).size == (256, 256)
    assert np.abs(FRAMED(long) - whole).mean() < 1
    assert FRAMED.cut(drawing((900, 800), (10, 20, 600, 500))).size == (702, 702), "no larger than the image"
