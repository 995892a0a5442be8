"""Heat maps as pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from grr_coca.infer.explain import WordMap, caption_picture

GREY = Image.new("RGB", (40, 30), (128, 128, 128))


def at(row, column, value=1.0):
    heat = torch.zeros(2, 2)
    heat[row, column] = value
    return heat


def colours(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def centre_of(mask):
    rows, columns = mask.nonzero()
    return rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]


def test_hot_patch_is_drawn_red_at_its_position():
    first, last = (colours(caption_picture(GREY, [WordMap("cat", at(side, side))], dpi=60)) for side in (0, 1))
    (top, left), (bottom, right) = (centre_of(pixels[:, :, 0] - pixels[:, :, 1] > 40) for pixels in (first, last))
    assert top < bottom
    assert 0.5 < left < right, "the image itself is on the left"


@pytest.mark.ci
@pytest.mark.parametrize("count", [0, 1, 5, 6, 13])
def test_any_number_of_words_has_its_panels(count):
    png = caption_picture(GREY, [WordMap(f"word {i}", at(0, 1)) for i in range(count)], dpi=40)
    assert Image.open(io.BytesIO(png)).format == "PNG"


def assert_drawn(png):
    """A PNG that is not of one colour."""
    low, high = Image.open(io.BytesIO(png)).convert("L").getextrema()
    assert high - low > 50


@pytest.mark.ci
@pytest.mark.parametrize("word", ["$x$", "$", "東京", "\\frac", "a" * 200, ""])
def test_any_word_can_be_a_title(word):
    assert_drawn(caption_picture(GREY, [WordMap(word, at(0, 0))], dpi=40))


def test_map_of_nothing_can_be_drawn():
    assert_drawn(caption_picture(GREY, [WordMap("cat", torch.zeros(2, 2))], dpi=40))
