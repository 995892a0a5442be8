"""Drawings in many colours, with gloss, outlines and shadows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from grr_coca.data.augmentation import Augmentation, Paint
from grr_coca.data.painting import _label_areas, paint_drawing

RED, GREEN = np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32)
PLAIN = Paint(
    palette=None,
    num_inks=1,
    fills=0.0,
    numbers=np.zeros(8),
    light=(1.0, 0.0),
    gradient=0.0,
    bevel=0.0,
    highlight=0.0,
    glance=(0.0, 0.0, 0.5),
    shadow=0.0,
    fall=(0, 0),
    outline=None,
)


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture
def two_rings():
    """Two black rings on white, side by side."""
    image = Image.new("RGB", (64, 64), "white")
    for left in (4, 36):
        ImageDraw.Draw(image).ellipse((left, 20, left + 24, 44), outline="black", width=5)
    return pixels_of(image)


@pytest.fixture
def square():
    """A grey square on white."""
    image = Image.new("RGB", (64, 64), "white")
    image.paste((100, 100, 100), (16, 16, 48, 48))
    return pixels_of(image)


def at(pixels: torch.Tensor, x: int, y: int) -> list[float]:
    return pixels[:, y, x].round(decimals=2).tolist()


def test_parts_are_coloured_and_the_background_stays_white(two_rings):
    paint = replace(PLAIN, palette=np.stack([RED, GREEN]), num_inks=2, fills=1.0)
    inks, areas = set(), set()
    for seed in range(20):
        pixels = paint_drawing(two_rings, replace(paint, numbers=np.random.default_rng(seed).uniform(size=256)))
        assert at(pixels, 1, 1) == at(pixels, 32, 32) == [1.0, 1.0, 1.0]
        assert at(pixels, 6, 32) == at(pixels, 26, 32), "the two sides of a ring"
        inks.add((*at(pixels, 6, 32), *at(pixels, 38, 32)))
        areas.add((*at(pixels, 16, 32), *at(pixels, 48, 32)))
    assert inks == areas == {(*one, *other) for one in (RED, GREEN) for other in (RED, GREEN)}
    hollow = paint_drawing(two_rings, replace(paint, fills=0.0))
    assert at(hollow, 16, 32) == at(hollow, 48, 32) == [1.0, 1.0, 1.0]
    assert at(hollow, 6, 32) == at(hollow, 38, 32) == RED.tolist()


def test_drawing_in_colours_keeps_them(square):
    blue = square.clone()
    blue[2, 16:48, 16:48] = 0.9
    assert torch.equal(paint_drawing(blue, replace(PLAIN, palette=RED[None], fills=1.0)), blue)
    assert at(paint_drawing(square, replace(PLAIN, palette=RED[None], fills=1.0)), 32, 32) == RED.tolist()


def test_half_covered_edges_mix_both_colours(square):
    square[:, 16, 16:48] = (1 + 100 / 255) / 2
    assert at(paint_drawing(square, replace(PLAIN, palette=RED[None])), 32, 16) == [1.0, 0.5, 0.5]


def test_light_affects_only_the_drawing_from_its_side(square):
    before = at(square, 32, 32)[0]
    gradient = paint_drawing(square, replace(PLAIN, gradient=0.5))
    bevel = paint_drawing(square, replace(PLAIN, bevel=1.0))
    highlight = paint_drawing(square, replace(PLAIN, highlight=0.4, glance=(0.3, 0.0, 0.2)))
    for pixels in (gradient, bevel, highlight):
        assert at(pixels, 2, 32) == at(pixels, 61, 32) == [1.0, 1.0, 1.0]
    assert at(gradient, 18, 32)[0] < before < at(gradient, 45, 32)[0]
    assert at(bevel, 47, 32)[0] < before < at(bevel, 16, 32)[0]
    assert at(bevel, 32, 32)[0] == before
    assert at(highlight, 41, 32)[0] == pytest.approx(before + 0.4, abs=0.02)
    assert at(highlight, 20, 32)[0] == pytest.approx(before, abs=0.02)


def test_shadow_is_offset_and_outline_surrounds_the_drawing(square):
    shadow = paint_drawing(square, replace(PLAIN, shadow=0.5, fall=(0.06, 0.03)))
    assert at(shadow, 32, 49)[0] < 0.75
    assert at(shadow, 32, 12) == [1.0, 1.0, 1.0]
    assert at(shadow, 49, 32)[0] < 0.95
    assert torch.equal(shadow[:, 16:48, 16:48], square[:, 16:48, 16:48])
    outline = paint_drawing(square, replace(PLAIN, outline=RED))
    assert at(outline, 32, 15) == at(outline, 32, 48) == at(outline, 15, 32) == at(outline, 48, 32) == RED.tolist()
    assert at(outline, 32, 8) == [1.0, 1.0, 1.0]
    square[:2, 16:48, 16:48] = 1.0  # light yellow is a colour, too
    assert at(paint_drawing(square, replace(PLAIN, outline=RED)), 32, 32) == at(square, 32, 32)


@pytest.mark.parametrize("size", [2, 17, 64])
@pytest.mark.parametrize("value", [0.0, 0.5, 0.95, 1.0])
def test_images_without_a_drawing_stay_images(size, value):
    for seed in range(15):
        paint = Augmentation(paint=1.0).draw(np.random.default_rng(seed)).paint
        pixels = paint_drawing(torch.full((3, size, size), value), paint)
        assert pixels.shape == (3, size, size)
        assert 0 <= pixels.min() <= pixels.max() <= 1


def test_each_paint_effect_has_expected_frequency():
    draws = [Augmentation(paint=0.5).draw(np.random.default_rng(seed)).paint for seed in range(800)]
    paints = [paint for paint in draws if paint is not None]
    assert 0.44 < len(paints) / len(draws) < 0.56
    assert 0.73 < np.mean([paint.palette is not None for paint in paints]) < 0.87
    for kind, share in {"fills": 0.7, "gradient": 0.6, "bevel": 0.4, "highlight": 0.3, "shadow": 0.35}.items():
        assert np.mean([getattr(paint, kind) != 0 for paint in paints]) == pytest.approx(share, abs=0.08), kind
    assert {paint.num_inks for paint in paints} == {1, 2, 3}


def flooded(is_in: np.ndarray) -> np.ndarray:
    """The connected areas, by a flood from each of their pixels that is not in one yet."""
    areas, number = np.zeros(is_in.shape, int), 0
    for start in zip(*np.nonzero(is_in), strict=True):
        number += not areas[start]
        todo = [start]
        while todo:
            y, x = todo.pop()
            if 0 <= y < len(is_in) and 0 <= x < len(is_in[0]) and is_in[y, x] and not areas[y, x]:
                areas[y, x] = number
                todo += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return areas


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_areas_are_connected_components(seed, share):
    rng = np.random.default_rng(seed)
    side = rng.integers(1, 30)
    is_in = rng.random((side, side)) < share
    found, expected = _label_areas(torch.from_numpy(is_in)).numpy(), flooded(is_in)
    pairs = set(zip(found.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len({area for area, _ in pairs}) == len({area for _, area in pairs})
    assert ((found > 0) == is_in).all()
