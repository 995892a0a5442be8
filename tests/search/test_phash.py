"""The perceptual hash: an index keeps it, so it must stay the same, and it must survive what happens to pictures."""

import io

import numpy as np
import pytest
import scipy.fft
from PIL import Image

from grr_coca.search.phash import differing_bits, perceptual_hash


def waves(seed: int, side: int = 200) -> Image.Image:
    """A picture of a few soft waves."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    levels = np.zeros((side, side))
    for _ in range(12):
        across, down, phase, height = generator.uniform((0, 0, 0, 0.2), (6, 6, 6, 1))
        levels += height * np.cos(np.pi * (across * x + down * y) + phase)
    levels = 255 * (levels - levels.min()) / np.ptp(levels)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def bits_between(first: Image.Image, second: Image.Image) -> int:
    (bits,) = differing_bits(*(np.array([perceptual_hash(image)], np.int64) for image in (first, second)))
    return int(bits)


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "changed",
    [lambda image: image.resize((90, 90)), recompressed, lambda image: image.point(lambda level: 40 + level * 0.7)],
    ids=["smaller", "recompressed", "paler"],
)
def test_what_is_done_to_a_picture_changes_few_bits(changed):
    assert max(bits_between(waves(seed), changed(waves(seed))) for seed in range(10)) <= 6


def test_other_pictures_have_about_half_of_the_bits_in_common():
    between = [bits_between(waves(first), waves(second)) for first in range(10) for second in range(first)]
    assert 26 < np.mean(between) < 38
    assert min(between) > 10


def test_each_bit_is_a_low_frequency_against_the_median_of_all_but_the_mean():
    small = waves(0, side=32)
    lowest = scipy.fft.dctn(np.asarray(small.convert("L"), np.float64))[:8, :8].ravel()
    bits = f"{perceptual_hash(small) & (2**64 - 1):064b}"
    assert bits == "".join(str(int(level > np.median(lowest[1:]))) for level in lowest)
