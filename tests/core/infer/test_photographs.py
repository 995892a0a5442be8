"""Whether an image looks like a photograph: the numbers of its inside, and what models that ship tell."""

import json
from dataclasses import replace

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image, ImageDraw

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.infer.calibration import (
    NUM_INSIDE,
    Photographs,
    compute_interior_stats,
    read_calibration,
    read_photographs,
)
from grr_coca.model.checkpoint_files import DEFAULT, FOLDER, PHOTOGRAPHS

SIDE = 32
BRIGHTNESS, COHERENCE, COLOURS = 6, 33, 39
"""Where the numbers of a kind begin."""


def square(inside: np.ndarray | int) -> np.ndarray:
    """White, with a square of 24 pixels in the middle."""
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pixels[4:28, 4:28] = inside
    return pixels


def slope() -> np.ndarray:
    """Values that rise by six from pixel to pixel, to the right."""
    return np.broadcast_to((6 * np.arange(24))[None, :, None], (24, 24, 3))


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (24, 24, 3), np.uint8)


def test_flat_or_thin_drawing_is_not_judged():
    thin = square(255)
    thin[4:28, 15:17] = 0
    inside = compute_interior_stats(np.stack([square(0), thin, square(noise())]))
    assert inside.is_flat.tolist() == [True, False, False]
    assert inside.is_judged.tolist() == [False, False, True]
    assert inside.numbers.shape == (1, NUM_INSIDE)
    assert compute_interior_stats(square(0)[None]).numbers.shape == (0, NUM_INSIDE)


def test_slope_is_smooth_and_coherent_where_noise_is_neither():
    steps = square(slope() // 2 * 2 + 5 * (np.arange(24)[None, :, None] % 2 == 0))
    (smooth, rough) = compute_interior_stats(np.stack([steps, square(noise())])).numbers
    both = BRIGHTNESS + 6  # the smaller of the two: no pixel of a slope is apart from its column
    assert smooth[both : both + 3] == pytest.approx(1)
    assert rough[both] < 0.8
    assert smooth[COHERENCE] == pytest.approx(1, abs=0.01)
    assert rough[COHERENCE] < 0.7


def test_colours_and_shares_equal_counts():
    halves = np.zeros((24, 24, 3), np.uint8)
    halves[:, 12:] = [192, 32, 32]
    halves[::2, ::2] += 8  # rough, and no other colour of four bits
    (found,) = compute_interior_stats(square(halves)[None]).numbers
    entropy, first, four, number = found[COLOURS : COLOURS + 4]
    assert (first, four) == (0.5, 1)
    assert entropy == pytest.approx(np.log(2))
    assert number == pytest.approx(2 / 20)
    assert found[-1] == pytest.approx(400 / SIDE**2), "two pixels of the square are near the ground on each side"
    assert found[-6] == pytest.approx(160 / 2 / 64), "the mean saturation"


def test_features_do_not_depend_on_the_batch():
    batch = np.stack([square(noise(seed) // (seed + 1)) for seed in range(3)])
    alone = np.concatenate([compute_interior_stats(image[None]).numbers for image in batch])
    np.testing.assert_allclose(compute_interior_stats(batch).numbers, alone, rtol=1e-5)


def fitted(**changes: object) -> Photographs:
    return Photographs(**{"weights": (0.0,) * NUM_INSIDE, "offset": -1.0, "fitted_on": "", **changes})


def test_score_is_a_weighted_sum_and_flat_images_are_drawings():
    weights = np.linspace(-1, 1, NUM_INSIDE)
    batch = np.stack([square(noise()), square(0), square(255)])
    judged, drawn, empty = fitted(weights=tuple(weights)).scores(batch)
    assert np.isnan(empty)
    assert judged == pytest.approx(compute_interior_stats(batch).numbers[0] @ weights - 1)
    assert drawn == -np.inf


def test_flat_interiors_are_familiar_at_any_distance():
    known = replace(read_calibration(FOLDER / DEFAULT), photographs=fitted())
    rough = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    flat = np.full((64, 64, 3), 255, np.uint8)
    flat[:, ::9] = 0
    flat[20:40, 20:40] = 128
    batch = np.stack([rough, flat])
    assert (known.distances(batch) > known.max_distance).all()
    assert known.are_unfamiliar(batch) == [True, False]
    assert replace(known, photographs=None).are_unfamiliar(batch) == [True, True]


@pytest.mark.parametrize("content", ["", '{"offset": 1}', json.dumps({**vars(fitted()), "weights": [1.0]})])
def test_corrupt_file_is_named(tmp_path, content):
    (tmp_path / PHOTOGRAPHS).write_text(content)
    with pytest.raises(UserError, match=PHOTOGRAPHS):
        read_photographs(tmp_path)


def test_distinguishes_cut_out_photographs_from_drawings():
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB").crop((60, 20, 460, 420))
    disc = Image.new("L", portrait.size)
    ImageDraw.Draw(disc).ellipse((20, 20, 380, 380), fill=255)
    cut_out = Image.new("RGB", portrait.size, "white")
    cut_out.paste(portrait, (0, 0), disc)
    calendar = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(calendar).rectangle((6, 18, 57, 57), fill="white")
    ImageDraw.Draw(calendar).line((18, 40, 28, 50, 46, 30), fill="black", width=6)
    found = grr_coca.load(DEFAULT, engine="onnx").are_unfamiliar([portrait, cut_out, calendar])
    assert found == [True, True, False]
