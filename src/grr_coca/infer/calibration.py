"""What a model knows of its own answers: how likely a caption is right, and whether an image is unlike the training.

The numbers were fitted for one model by `scripts/fit_confidence.py` and lie beside its weights, in `confidence.json`. A
model without this file cannot tell.

- *Confidence* is a logistic curve over the log-probability of the caption. It was fitted on images of design families
  that training never saw.
- An image is *unfamiliar* if statistics of its pixels lie far from those of the training images (Mahalanobis distance).
  The limit was set on drawings that training never saw. No photograph took part in this fit.
- It is also unfamiliar if it looks like a photograph, see `grr_coca.infer.photographs`, for models with these numbers.
  What is flat inside is then familiar at any distance: drawings that fill their frame lie far from others.

Shapes: B images, S image size in pixels, F statistics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.common.shapes import Bool, Float, Int, UInt8
from grr_coca.infer.photographs import Photographs, read_photographs
from grr_coca.model.checkpoint_folder import CONFIDENCE


class Certainty(NamedTuple):
    """How sure a model is of its caption of an image; None: it cannot tell.

    `confidence`: the probability that the caption is exactly right. It is None also for an unfamiliar image, for a
    caption that follows a prompt, and for one that `max_length` cut off. `unfamiliar`: True if the image is unlike
    those that the model was trained on.
    """

    confidence: float | None = None
    unfamiliar: bool | None = None


UNKNOWN = Certainty()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The numbers that were fitted for a model.

    `slope`, `offset`: of the logistic curve over log-probabilities. `mean`, `precision`: of the statistics of training
    images, F and F F. `max_distance`: of a familiar image. `fitted_on`: the images of the fit, in words. `photographs`:
    by which photographs are known; they have a file of their own.
    """

    slope: float
    offset: float
    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    max_distance: float
    fitted_on: str
    photographs: Photographs | None = None

    def __post_init__(self) -> None:
        if {len(row) for row in (self.mean, self.precision, *self.precision)} != {NUM_STATISTICS}:
            raise UserError(f"'mean' and 'precision' are not those of {NUM_STATISTICS} statistics")

    def confidence(self, log_probs: Sequence[float]) -> float:
        """The probability that a caption is exactly right, from the log-probabilities of its tokens."""
        logit = self.slope * math.fsum(log_probs) + self.offset
        return 1 / (1 + math.exp(-max(-500.0, min(logit, 500.0))))

    def distances(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, " B"]:
        """The squared Mahalanobis distance of each image from the training images."""
        away = statistics(pixels) - np.asarray(self.mean)
        return np.einsum("bf,fg,bg->b", away, np.asarray(self.precision), away)

    def are_unfamiliar(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> list[bool]:
        """Whether each image is unlike the training images."""
        is_far = self.distances(pixels) > self.max_distance
        if self.photographs is None:
            return is_far.tolist()
        scores = self.photographs.scores(pixels)
        return ((scores > 0) | (is_far & (scores != -math.inf))).tolist()


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration of the model in a folder; None if it has none.

    Raises:
        UserError: a file is damaged.
    """
    path = folder / CONFIDENCE
    if not path.exists():
        return None
    return replace(from_dict(Calibration, read_json(path), str(path)), photographs=read_photographs(folder))


# --- Statistics of an image

NUM_STATISTICS = 6
_SAME, _NEAR = 4, 8
"""Differences of colours, of 255, that count as none: between neighbours, and from the background."""
_SHIFT = 4
"""Bits of a channel that colours are rounded by before they are counted."""


def statistics(pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B 6"]:
    """Six numbers by which drawings differ from photographs, for each image.

    1. The share of neighbouring pixels of the same colour.
    2. The entropy of the colours.
    3. The share of the border that has the background's colour, the median of the border.
    4. The share of the image that has it.
    5. The logarithm of the mean difference between neighbours.
    6. The standard deviation of the border.
    """
    planes = np.ascontiguousarray(np.moveaxis(pixels, 3, 1)).astype(np.int16)  # B 3 S S
    across, down = (np.abs(np.diff(planes, axis=axis)).max(axis=1) for axis in (3, 2))
    same = (_share(across <= _SAME) + _share(down <= _SAME)) / 2
    border = np.concatenate([planes[:, :, 0], planes[:, :, -1], planes[:, :, 1:-1, 0], planes[:, :, 1:-1, -1]], axis=2)
    middle = border.shape[2] // 2
    twice_background = np.partition(border, (middle - 1, middle), axis=2)[:, :, middle - 1 : middle + 1].sum(axis=2)

    def is_background(values: np.ndarray) -> np.ndarray:
        around = twice_background.reshape(*twice_background.shape, *[1] * (values.ndim - 2))
        return (np.abs(2 * values - around) <= 2 * _NEAR).all(axis=1)

    roughness = np.log1p(across.mean(axis=(1, 2)) + down.mean(axis=(1, 2)))
    spread = border.std(axis=2).mean(axis=1) / 64
    on_border, everywhere = _share(is_background(border)), _share(is_background(planes))
    return np.stack([same, _entropies(planes), on_border, everywhere, roughness, spread], axis=1)


def _share(flags: Bool[np.ndarray, "B *x"]) -> Float[np.ndarray, " B"]:
    """The share of each image that is True."""
    return np.count_nonzero(flags, axis=tuple(range(1, flags.ndim))) / flags[0].size


def _entropies(planes: Int[np.ndarray, "B 3 S S"]) -> Float[np.ndarray, " B"]:
    red, green, blue = np.moveaxis(planes >> _SHIFT, 1, 0)
    bits = 8 - _SHIFT
    colours = ((red << bits | green) << bits | blue).reshape(len(planes), -1)
    found = np.zeros(len(planes))
    for number, image in enumerate(colours):
        counts = np.bincount(image)
        shares = counts[counts > 0] / image.size
        found[number] = -(shares * np.log(shares)).sum()
    return found
