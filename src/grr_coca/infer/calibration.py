"""Calibration of a model: the probability that a caption is correct, and the detection of unfamiliar images.

The parameters were fitted to one model by `scripts/fit_confidence.py`, and are stored with the weights of this model in
`confidence.json`. A model without this file reports no confidences and does not detect unfamiliar images.

- *Confidence* is a logistic function of the log-probability of the caption. It was fitted on images of design families
  that the model was not trained on.
- An image is *unfamiliar* if its pixel statistics are far from those of the training images (Mahalanobis distance). The
  limit was determined with drawings held out from training; no photographs were used.
- For models with `photographs.json`, which `scripts/fit_photographs.py` writes, an image is also unfamiliar if it looks
  like a photograph, complete or cut out. In these models, an image with a flat interior is familiar at any
  distance, because drawings that fill their frame are far from all other drawings. A cut-out photograph has a border
  like that of a drawing, so only the interior can reveal it: photographs are rough nearly everywhere, their edges run
  in all directions, and their colours vary independently of their brightness. Even glossy drawings are smooth between
  their edges, and shading changes all of their channels together.

Shapes: B images, S image size in pixels, s = S - 2, N classified images, F statistics or interior features.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.common.shapes import Bool, Float, Int, UInt8
from grr_coca.model.checkpoint_files import CONFIDENCE, PHOTOGRAPHS


class CaptionConfidence(NamedTuple):
    """A model's confidence in its caption of an image. A value is None if it is unknown.

    Attributes:
        confidence: Probability that the caption is exactly right. This is also None if the image is unfamiliar, if the
            caption continues a prompt, or if `max_length` truncated the caption.
        unfamiliar: Whether the image is unlike the training images.
    """

    confidence: float | None = None
    unfamiliar: bool | None = None


UNKNOWN = CaptionConfidence()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Parameters, fitted to one model, of its confidence in captions and of its detection of unfamiliar images.

    Attributes:
        slope, offset: Parameters of the logistic function of the log-probability.
        mean, precision: Mean and inverse covariance of the statistics of the training images, with shapes F and F F.
        max_distance: Maximum squared Mahalanobis distance of a familiar image.
        fitted_on: Description in words of the images that the parameters were fitted to.
        photographs: Parameters of the photograph detector, stored in a separate file.
    """

    slope: float
    offset: float
    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    max_distance: float
    fitted_on: str
    photographs: "Photographs | None" = None

    def __post_init__(self) -> None:
        if {len(row) for row in (self.mean, self.precision, *self.precision)} != {NUM_STATISTICS}:
            raise UserError(
                f"'mean' must have {NUM_STATISTICS} numbers, and 'precision' {NUM_STATISTICS} rows of as many numbers"
            )

    def confidence(self, log_probs: Sequence[float]) -> float:
        """Return the probability that a caption is exactly right, from the log-probabilities of its tokens."""
        logit = self.slope * math.fsum(log_probs) + self.offset
        return 1 / (1 + math.exp(-max(-500.0, min(logit, 500.0))))

    def distances(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, " B"]:
        """Return the squared Mahalanobis distance of each image's statistics from those of the training images."""
        away = statistics(pixels) - np.asarray(self.mean)
        return np.einsum("bf,fg,bg->b", away, np.asarray(self.precision), away)

    def are_unfamiliar(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> list[bool]:
        """Return whether each image is unlike the training images."""
        is_far = self.distances(pixels) > self.max_distance
        if self.photographs is None:
            return is_far.tolist()
        scores = self.photographs.scores(pixels)
        return ((scores > 0) | (is_far & (scores != -math.inf))).tolist()


def read_calibration(folder: Path) -> Calibration | None:
    """Return the calibration of the model in a folder, or None if the model has no calibration.

    Raises:
        UserError: If a file is corrupt.
    """
    path = folder / CONFIDENCE
    if not path.exists():
        return None
    return replace(from_dict(Calibration, read_json(path), str(path)), photographs=read_photographs(folder))


# --- Statistics of an image

NUM_STATISTICS = 6
_SAME, _NEAR = 4, 8
"""Largest differences, on a scale of 0 to 255, at which colours count as equal: `_SAME` between neighbouring pixels,
and `_NEAR` from the background."""


def statistics(pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B 6"]:
    """Return six numbers per image that distinguish drawings from photographs.

    1. The fraction of pairs of neighbouring pixels that have the same colour.
    2. The entropy of the colours.
    3. The fraction of the border that has the background's colour, which is the median of the border.
    4. The fraction of the image that has the background's colour.
    5. The logarithm of the mean difference between neighbouring pixels.
    6. The standard deviation of the border's colours.
    """
    planes = _planes(pixels)
    across = _differences(planes, 1).max(axis=0)[..., :-1]
    down = _differences(planes, planes.shape[-1]).max(axis=0)[:, :-1]
    same = (_true_fraction(across <= _SAME) + _true_fraction(down <= _SAME)) / 2
    border = _border(planes)
    background = np.median(border, axis=2)

    def is_background(values: np.ndarray) -> np.ndarray:
        return _is_near(values, background, _NEAR)

    roughness = np.log1p(_mean(across) + _mean(down))
    spread = border.std(axis=2).mean(axis=0) / 64
    on_border, everywhere = _true_fraction(is_background(border)), _true_fraction(is_background(planes))
    return np.stack([same, _entropies(planes), on_border, everywhere, roughness, spread], axis=1)


# NumPy takes several times as long for the many short rows of images as for one long array. Therefore, each pixel and
# its neighbour are paired by shifting the array of all pixels. At the ends of rows and images, this yields meaningless
# values, which are not used.


def _planes(pixels: UInt8[np.ndarray, "B S S 3"]) -> UInt8[np.ndarray, "3 B S S"]:
    return np.ascontiguousarray(np.moveaxis(pixels, 3, 0))


def _border(planes: UInt8[np.ndarray, "3 B S S"]) -> UInt8[np.ndarray, "3 B b"]:
    return np.concatenate([planes[:, :, 0], planes[:, :, -1], planes[:, :, 1:-1, 0], planes[:, :, 1:-1, -1]], axis=2)


def _differences(planes: UInt8[np.ndarray, "3 B S S"], distance: int) -> UInt8[np.ndarray, "3 B S S"]:
    """Return the absolute difference of each value and the value `distance` places later.

    Eight-bit integers are used, because sixteen-bit integers would take twice as long.
    """
    found, values = np.empty_like(planes), planes.ravel()
    inner, one, other = found.reshape(-1)[:-distance], values[:-distance], values[distance:]
    np.maximum(one, other, out=inner)
    inner -= np.minimum(one, other)
    return found


def _is_near(
    planes: UInt8[np.ndarray, "3 B *x"], colours: Float[np.ndarray, "3 B"], most: int
) -> Bool[np.ndarray, "B *x"]:
    """Return for each pixel whether all of its channels differ by at most `most` from the colour given for its
    image."""
    colours = colours.reshape(*colours.shape, *[1] * (planes.ndim - 2))
    low = np.ceil(np.maximum(colours - most, 0)).astype(np.uint8)
    high = np.floor(np.minimum(colours + most, 255)).astype(np.uint8)
    return ((planes >= low) & (planes <= high)).all(axis=0)


def _count_true(flags: Iterable[np.ndarray]) -> Int[np.ndarray, " B"]:
    """Return the number of true flags of each image."""
    return np.array([np.count_nonzero(of_image) for of_image in flags])


def _true_fraction(flags: Bool[np.ndarray, "B *x"]) -> Float[np.ndarray, " B"]:
    """Return the fraction of each image's flags that are true."""
    return _count_true(flags) / flags[0].size


def _mean(values: UInt8[np.ndarray, "B *x"]) -> Float[np.ndarray, " B"]:
    return values.sum(axis=(1, 2), dtype=np.uint32) / values[0].size


def _four_bits(planes: UInt8[np.ndarray, "3 *x"] | Int[np.ndarray, "3 *x"]) -> Int[np.ndarray, " *x"]:
    """Convert each colour to a single number with four bits per channel."""
    red, green, blue = (planes >> 4).astype(np.int16)
    return (red << 4 | green) << 4 | blue


def _entropies(planes: UInt8[np.ndarray, "3 B S S"]) -> Float[np.ndarray, " B"]:
    colours = _four_bits(planes).reshape(planes.shape[1], -1)
    found = np.zeros(len(colours))
    for number, image in enumerate(colours):
        counts = np.bincount(image)
        shares = counts[counts > 0] / image.size
        found[number] = -(shares * np.log(shares)).sum()
    return found


# --- Photographs: statistics of the interior of an image, without its background

_GROUND = 24
"""Maximum difference of a background pixel from the background colour in each channel, on a scale of 0 to 255."""
_MIN_INSIDE = 48
"""Minimum number of interior pixels that is needed to classify an image."""
_FLAT, _MAX_FLAT = 3, 0.9
"""`_FLAT` is the maximum Laplacian of a flat pixel. If the fraction of flat pixels exceeds `_MAX_FLAT`, the interior is
flat."""

_LAPLACIANS = (3, 8, 20, 40, 80)
_STRAYS = ((0, 1, 3, 6, 12, 24), (1, 4, 10), (1, 4, 10))
"""Limits of the features in item 2 of `compute_interior_stats`, in grey values, for brightness, red minus green, and
blue minus green."""
_NUM_BOTH = 3
_COHERENT = (0.5, 0.8, 0.95)
_EDGE = 16
"""Minimum mean squared slope at an edge, per pixel."""
_AT_ONCE = 16
"""Number of images whose features are computed at once. The arrays of more images would not fit into the cache."""
NUM_INSIDE = 1 + len(_LAPLACIANS) + sum(len(limits) + _NUM_BOTH + 2 for limits in _STRAYS) + 3 + 3 + 10


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Fitted parameters of the photograph detector. An image with a score above 0 looks like a photograph.

    Attributes:
        weights: Weights of the F interior features.
        offset: Offset of the weighted sum.
        fitted_on: Description in words of the images that the parameters were fitted to.
    """

    weights: tuple[float, ...]
    offset: float
    fitted_on: str

    def __post_init__(self) -> None:
        if len(self.weights) != NUM_INSIDE:
            raise UserError(f"'weights' must have {NUM_INSIDE} numbers, got {len(self.weights)}")

    def scores(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, " B"]:
        """Return a score of each image's resemblance to a photograph.

        The score is minus infinity if the interior is flat, as in drawings, and NaN if the interior is too small for a
        score.
        """
        parts = [self._scores(pixels[start : start + _AT_ONCE]) for start in range(0, len(pixels), _AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _scores(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, " B"]:
        inside = compute_interior_stats(pixels)
        found = np.where(inside.is_flat, -math.inf, math.nan)
        found[inside.is_judged] = inside.numbers @ np.asarray(self.weights) + self.offset
        return found


def read_photographs(folder: Path) -> Photographs | None:
    """Return the photograph detector of the model in a folder, or None if the model has no such detector.

    Raises:
        UserError: If the file is corrupt.
    """
    path = folder / PHOTOGRAPHS
    return from_dict(Photographs, read_json(path), str(path)) if path.exists() else None


class InteriorStats(NamedTuple):
    """Features of the interiors of B images.

    Attributes:
        is_flat: Whether the interior of each image is large enough and flat.
        is_judged: Whether the interior is large enough and not flat, so that its features are computed.
        numbers: Features of the judged images, in their order.
    """

    is_flat: Bool[np.ndarray, " B"]
    is_judged: Bool[np.ndarray, " B"]
    numbers: Float[np.ndarray, "N F"]


def compute_interior_stats(pixels: UInt8[np.ndarray, "B S S 3"]) -> InteriorStats:
    """Compute the features of the interiors of images.

    The interior consists of all pixels that are more than two pixels away from the background, whose colour is the
    median colour of the border. Images with a tiny or a flat interior are not judged. The features are:

    1. From the absolute Laplacian of each pixel, the maximum over channels: the mean logarithm, and the fractions of
       pixels with values up to each limit in `_LAPLACIANS`.
    2. From brightness and two differences of channels: the amount by which a pixel is above or below both of its
       neighbours in the row, and the same amount for the column (each is 0 on slopes and straight edges). The features
       are the fractions of pixels at which the larger and the smaller of the two amounts are up to the limits in
       `_STRAYS`, the mean sum of the two amounts divided by the mean slope, and the mean logarithm of this sum.
    3. From the structure tensor over three by three pixels: its coherence computed from means over the interior, from
       mean logarithms, and as a mean over pixels, and the fractions of pixels that are at edges and have a coherence
       above each limit in `_COHERENT`.
    4. From the colours with four bits per channel: their entropy, the fraction of the most frequent colour, that of
       the four most frequent colours, and the number of colours, relative to the square root of the number of pixels.
    5. The mean saturation, the fraction of highly saturated pixels, the standard deviation of brightness, the fractions
       of white and of black pixels, and the fraction of the image that is interior.
    """
    planes = _planes(pixels)
    is_inside = _is_inside(planes)
    planes = planes.astype(np.int16)
    area = _Area(is_inside)
    laplacians = area.of(reduce(np.maximum, map(_laplacian, planes)))
    is_large = area.counts >= _MIN_INSIDE
    is_flat = is_large & (_count_true(area.split(laplacians <= _FLAT)) > _MAX_FLAT * area.counts)
    is_judged = is_large & ~is_flat
    if not is_judged.any():
        return InteriorStats(is_flat, is_judged, np.zeros((0, NUM_INSIDE)))
    laplacians = laplacians[is_judged.repeat(area.counts)]
    planes, area = planes[:, is_judged], _Area(is_inside[is_judged])
    of, mean = area.of, area.mean

    red, green, blue = planes
    brightness = (2 * red + 5 * green + blue) >> 3
    numbers = [mean(np.log1p(laplacians)), *(mean(laplacians <= limit) for limit in _LAPLACIANS)]
    for plane, limits in zip((brightness, red - green, blue - green), _STRAYS, strict=True):
        numbers += _strays(plane, limits, area)
    numbers += _coherence(brightness.astype(np.float32), area)
    colours = np.stack([of(_neighbours(plane)[0]) for plane in planes])  # 3 P
    numbers.extend(np.transpose([_colours(image) for image in area.split(_four_bits(colours))]))
    saturation, light = (colours.max(axis=0) - colours.min(axis=0)) / 64, of(_neighbours(brightness)[0]) / 64
    numbers += [mean(saturation), mean(saturation > 3), np.sqrt(np.maximum(mean(light**2) - mean(light) ** 2, 0))]
    numbers += [mean(light > 3.8), mean(light < 0.2), area.counts / pixels[0, ..., 0].size]
    return InteriorStats(is_flat, is_judged, np.stack(numbers, axis=1))


class _Area:
    """The interior pixels of N images, of which there are P in total.

    Attributes:
        counts: Number of interior pixels of each image.
    """

    def __init__(self, is_inside: Bool[np.ndarray, "N S S"]) -> None:
        self.counts = _count_true(is_inside)
        self._places = np.flatnonzero(_neighbours(is_inside)[0])
        self._starts = np.cumsum(self.counts) - self.counts
        ends = [0, *np.cumsum(self.counts).tolist()]
        self._parts = [slice(start, end) for start, end in pairwise(ends)]

    def of(self, values: np.ndarray) -> np.ndarray:
        """Select the values of the P interior pixels from the values in the order of `_neighbours`."""
        return values.take(self._places)

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Split the values of the P interior pixels into one array per image."""
        return [values[part] for part in self._parts]

    def mean(self, values: np.ndarray) -> Float[np.ndarray, " N"]:
        """Return the mean over the interior pixels of each image, from the values of the P interior pixels."""
        if values.dtype == bool:
            return _count_true(self.split(values)) / self.counts
        return np.add.reduceat(values, self._starts, dtype=np.float64) / self.counts


def _is_inside(planes: UInt8[np.ndarray, "3 B S S"]) -> Bool[np.ndarray, "B S S"]:
    """Return, for each pixel, whether no pixel in the surrounding 5 × 5 square has the background colour.

    Pixels beyond the edge of the image do not count as background, and the outermost pixels are never inside.
    """
    side = planes.shape[-1]
    is_drawn = np.ones((planes.shape[1], side + 4, side + 4), dtype=bool)
    ground = np.floor(np.median(_border(planes), axis=2))
    np.logical_not(_is_near(planes, ground, _GROUND), out=is_drawn[:, 2:-2, 2:-2])
    for step in (side + 4, 1):
        is_drawn = _erode(is_drawn, step)
    is_inside = np.zeros(planes.shape[1:], dtype=bool)
    is_inside[:, 1:-1, 1:-1] = is_drawn[:, 3:-3, 3:-3]
    return is_inside


def _erode(flags: Bool[np.ndarray, "*x"], step: int) -> Bool[np.ndarray, "*x"]:
    """Return for each flag whether it and its two neighbours on each side are true. Neighbours are `step` apart."""
    found, values = np.ones_like(flags), flags.ravel()
    inner = found.reshape(-1)[2 * step : -2 * step]
    for start in range(0, 5 * step, step):
        inner &= values[start : start + inner.size]
    return found


def _neighbours(plane: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return all pixels of N images, N S S, without the first and the last row, and the left, right, upper and lower
    neighbour of each, as arrays with one axis."""
    side, values = plane.shape[-1], plane.ravel()
    shifts = (0, -1, 1, -side, side)
    return tuple(values[side + shift : values.size - side + shift] for shift in shifts)


def _laplacian(plane: Int[np.ndarray, "N S S"]) -> Int[np.ndarray, " I"]:
    """Return absolute Laplacians in the order of `_neighbours`."""
    centre, *others = _neighbours(plane)
    found = 4 * centre
    for other in others:
        found -= other
    return np.abs(found, out=found)


def _strays(plane: Int[np.ndarray, "N S S"], limits: tuple[int, ...], area: _Area) -> list[np.ndarray]:
    centre, left, right, up, down = _neighbours(plane)
    across, along = (
        area.of(np.abs(centre - _median_of_three(one, centre, other))) for one, other in ((left, right), (up, down))
    )
    larger, smaller, mean = np.maximum(across, along), np.minimum(across, along), area.mean
    slopes = mean(area.of(np.abs(right - centre) + np.abs(down - centre)))
    return [
        *(mean(larger <= limit) for limit in limits),
        *(mean(smaller <= limit) for limit in limits[:_NUM_BOTH]),
        mean(across + along) / (slopes + 1),
        mean(np.log1p(across + along)),
    ]


def _median_of_three(one: np.ndarray, two: np.ndarray, three: np.ndarray) -> np.ndarray:
    """Return the median of three values."""
    return np.maximum(np.minimum(one, two), np.minimum(np.maximum(one, two), three))


def _coherence(brightness: Float[np.ndarray, "N S S"], area: _Area) -> list[np.ndarray]:
    _, left, right, up, down = _neighbours(brightness)
    across, along = (
        _pad_to_images((after - before) / 2, brightness.shape) for before, after in ((left, right), (up, down))
    )
    products = (_sum_three_by_three(values) for values in (across**2, along**2, across * along))
    squares, other_squares, both = map(area.of, products)
    mean = area.mean
    energy = squares + other_squares
    coherent = np.sqrt((squares - other_squares) ** 2 + 4 * both**2)
    is_edge = energy > 9 * _EDGE
    return [
        mean(coherent) / (mean(energy) + 1),
        mean(np.log1p(coherent)) - mean(np.log1p(energy)),
        mean(coherent / (energy + 9)),
        *(mean((coherent > share * energy) & is_edge) for share in _COHERENT),
    ]


def _pad_to_images(values: Float[np.ndarray, " I"], shape: tuple[int, ...]) -> Float[np.ndarray, "N S S"]:
    """Return values in the order of `_neighbours` as images whose outermost pixels are 0."""
    found = np.empty(shape, values.dtype)
    found.reshape(-1)[shape[-1] : -shape[-1]] = values
    found[:, 0] = found[:, -1] = found[..., 0] = found[..., -1] = 0
    return found


def _sum_three_by_three(values: Float[np.ndarray, "N S S"]) -> Float[np.ndarray, " I"]:
    """Return the sums over the 3 × 3 pixels around each pixel, in the order of `_neighbours`."""
    centre, _, _, up, down = _neighbours(values)
    rows = np.pad(up + centre + down, 1)
    return rows[:-2] + rows[1:-1] + rows[2:]


def _colours(colours: Int[np.ndarray, " P"]) -> tuple[float, float, float, float]:
    counts = np.bincount(colours)
    shares = np.sort(counts[counts > 0])[::-1] / colours.size
    return -(shares * np.log(shares)).sum(), shares[0], shares[:4].sum(), len(shares) / math.sqrt(colours.size)
