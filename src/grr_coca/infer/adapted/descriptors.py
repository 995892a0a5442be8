"""Image descriptors without learned parameters: edge orientations, colours, and coarse pixels.

The descriptors complement the embedding of a base model in a new domain. They are computed from the model's input
pixels, in which drawings are already framed.

Shapes: B images, S image size in pixels, C cells per side, D width of a descriptor.
"""

from functools import cache

import numpy as np

from grr_coca.common.shapes import Float, UInt8

VERSION = 1
"""Version of these rules. Features stored with another version are not reused."""

_SIDE, _CELLS, _DIRECTIONS = 32, 8, 8
"""Number of pixels and of cells along each side of the grey copy of an image, and number of edge directions in half a
turn."""
_COLOUR_BITS = 2
_PIXELS_SIDE = 10
_ORIENTATIONS_SHARE, _PIXELS_SHARE = 0.75, 0.5
"""Squared lengths of the orientations and of the coarse pixels; that of the colours is 1. They were chosen by five-fold
cross-validation on training pairs of three domains. Results barely change if they are up to twice as large or half as
large."""

NUM_DESCRIPTORS = (_CELLS**2 + (_CELLS // 2) ** 2) * _DIRECTIONS + 2 ** (3 * _COLOUR_BITS) + 3 * _PIXELS_SIDE**2


def descriptors(pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B D"]:
    """Compute the descriptors of images, in fp32, with D = `NUM_DESCRIPTORS`. Their parts are:

    - Square roots of the histograms of gradient orientations in 8 × 8 and in 4 × 4 cells (HOG, Dalal and Triggs 2005).
    - Square roots of a histogram of 64 colours.
    - The image scaled to 10 × 10 pixels, as differences from white.

    Each part has a fixed length, but orientations are zero without edges, and the pixels of a white image are zero.
    """
    fine = _orientation_histograms(pixels)  # B C C 8
    coarse = fine.reshape(len(pixels), _CELLS // 2, 2, _CELLS // 2, 2, _DIRECTIONS).sum(axis=(2, 4))
    parts = [np.sqrt(_ORIENTATIONS_SHARE / 2) * unit(np.sqrt(_flat(cells))) for cells in (fine, coarse)]
    parts.append(unit(np.sqrt(_colour_histograms(pixels))))
    parts.append(np.float32(np.sqrt(_PIXELS_SHARE)) * unit(255 - _flat(_scale_images(pixels, _PIXELS_SIDE))))
    return np.concatenate(parts, axis=1).astype(np.float32)


def unit(rows: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B D"]:
    """Scale rows to length 1. Rows of zeros stay zero."""
    lengths = np.sqrt(np.square(rows).sum(axis=-1, keepdims=True))
    return rows / np.maximum(lengths, np.float32(1e-9))


def _flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(len(values), -1)


def _orientation_histograms(pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B C C 8"]:
    """Return the lengths of gradients, summed for each cell and direction.

    A gradient contributes to the two directions nearest to its angle.
    """
    grey = _scale_images(pixels, _SIDE).mean(axis=3)
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    place = np.arctan2(down, across) % np.pi * np.float32(_DIRECTIONS / np.pi)
    lower = np.floor(place)
    further = (place - lower).astype(np.float32)
    length = np.hypot(across, down)
    first = lower.astype(np.int64) % _DIRECTIONS
    size = _SIDE // _CELLS
    found = np.zeros((len(pixels), _CELLS, _CELLS, _DIRECTIONS), np.float32)
    for direction in range(_DIRECTIONS):
        counted = length * (1 - further) * (first == direction)
        counted += length * further * ((first + 1) % _DIRECTIONS == direction)
        found[..., direction] = counted.reshape(-1, _CELLS, size, _CELLS, size).sum(axis=(2, 4))
    return found


def _colour_histograms(pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B 64"]:
    red, green, blue = np.moveaxis(pixels >> (8 - _COLOUR_BITS), 3, 0).astype(np.int64)
    codes = ((red << _COLOUR_BITS | green) << _COLOUR_BITS | blue).reshape(len(pixels), -1)
    counts = [np.bincount(image, minlength=2 ** (3 * _COLOUR_BITS)) for image in codes]
    return np.array(counts, np.float32).reshape(len(pixels), -1)


def _scale_images(pixels: UInt8[np.ndarray, "B S S 3"], side: int) -> Float[np.ndarray, "B s s 3"]:
    """Scale images by area averaging."""
    weights = _overlap_fractions(pixels.shape[1], side)
    return np.einsum("is,bstc,jt->bijc", weights, pixels.astype(np.float32), weights, optimize=True)


@cache
def _overlap_fractions(size: int, side: int) -> Float[np.ndarray, "s S"]:
    """Return, for each of `side` new pixels, the fraction that each pixel in a row of `size` old pixels covers."""
    ends = np.arange(side + 1) * (size / side)
    pixels = np.arange(size)
    overlap = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    shares = np.maximum(overlap, 0)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
