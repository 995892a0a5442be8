"""The script that fits by which numbers photographs are known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import fit_photographs
from grr_coca.data.preprocess import Preprocess


def test_the_curve_is_the_one_that_the_truths_were_drawn_from():
    rng = np.random.default_rng(0)
    numbers = rng.normal(3, 2, (20_000, 2))
    is_positive = rng.random(20_000) < 1 / (1 + np.exp(-(numbers @ [1.5, -0.5] - 2)))
    weights, offset = fit_photographs.fit([numbers[is_positive]], [numbers[~is_positive]])
    assert (*weights, offset) == pytest.approx((1.5, -0.5, -2), abs=0.15)


def test_each_set_counts_once_for_the_limit():
    large, small = (
        np.zeros(1000),
        np.array([0.0] * 13 + [3.0]),
    )  # 1 of 14 is twice what may be wrong, and one of two sets
    assert fit_photographs.limit_of([large, small]) == pytest.approx(3, abs=0.02)
    assert fit_photographs.limit_of([large, *[np.zeros(9)] * 2, small]) == pytest.approx(0, abs=0.02)


def ring() -> Image.Image:
    drawing = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(drawing).ellipse((8, 8, 56, 56), outline="black", width=6)
    return drawing


def test_an_outline_fills_holes_and_white_that_is_enclosed_stays():
    assert fit_photographs.outline(ring()).getpixel((128, 128)) == 255
    assert fit_photographs.outline(ring()).getpixel((2, 2)) == 0
    alpha = fit_photographs.cut_free(ring()).getchannel("A")
    assert (alpha.getpixel((1, 1)), alpha.getpixel((32, 32)), alpha.getpixel((32, 10))) == (0, 255, 255)


def test_a_cut_out_shows_the_photograph_inside_of_the_outline_alone(monkeypatch):
    pictures = fit_photographs.Pictures(Preprocess(64))
    monkeypatch.setattr(pictures, "_drawings", lambda path, number: [ring()] * number)
    found = pictures.cut_out([Image.new("RGB", (200, 100), (200, 40, 40))], {"rings": 2}, 8)
    assert found.shape == (8, 64, 64, 3)
    red = (np.abs(found.astype(int) - [200, 40, 40]).max(axis=-1) < 40).mean(axis=(1, 2))
    assert ((red > 0.4) & (red < 0.9)).all()
    assert (np.abs(found[:, 32, 32].astype(int) - [200, 40, 40]).max(axis=-1) < 40).all()


def test_drawings_are_also_shown_small_and_glossy(monkeypatch):
    pictures = fit_photographs.Pictures(Preprocess(64))
    filled = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(filled).rectangle((12, 12, 51, 51), fill=(60, 120, 200))
    monkeypatch.setattr(pictures, "_drawings", lambda path, number: [filled] * number)
    as_they_are, small, glossy = pictures.views("filled", 9)
    assert [len(of) for of in (as_they_are, small, glossy)] == [9, 3, 3]
    assert (as_they_are == np.asarray(filled)).all()
    inner = [image[20:44, 20:44].reshape(-1, 3).std(axis=0).max() for image in (as_they_are[0], *glossy)]
    assert inner[0] == 0
    assert min(inner[1:]) > 1
