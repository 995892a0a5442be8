"""Perceptual hash: 64 bits that stay the same, or nearly, when a picture is scaled, recompressed or retouched.

Each bit tells whether one of the 64 lowest frequencies of the grey picture (discrete cosine transform) is above their
median. Two pictures look alike if few bits differ.
"""

from functools import cache

import numpy as np
from PIL import Image

SIDE = 32
FREQUENCIES = 8
BITS_OF_BYTE = np.array([byte.bit_count() for byte in range(256)], np.uint8)


def perceptual_hash(image: Image.Image) -> int:
    """The hash of an RGB image, as a signed number of 64 bits."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2)
    cosines = _cosines()
    lowest = cosines @ np.asarray(grey, np.float64) @ cosines.T
    bits = lowest > np.median(lowest.ravel()[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def differing_bits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How many bits of hashes differ, for arrays of 64-bit numbers whose shapes broadcast."""
    different = np.ascontiguousarray(np.bitwise_xor(first, second))
    return BITS_OF_BYTE[different.view(np.uint8).reshape(*different.shape, 8)].sum(axis=-1, dtype=np.int64)


@cache
def _cosines() -> np.ndarray:
    """The first rows of the matrix of the discrete cosine transform, of the frequencies from 0 on."""
    frequency, place = np.arange(FREQUENCIES)[:, None], np.arange(SIDE)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))
