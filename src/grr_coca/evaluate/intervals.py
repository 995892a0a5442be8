"""Confidence intervals of metrics, by a bootstrap over images (Efron and Tibshirani, 1993).

Each resample draws as many images as the split has, with replacement. All pairs of an image are sampled together.
Quantities of the entire corpus, such as the document frequencies of CIDEr or the retrieval candidates, stay the same.

Shapes: N images, S statistics, R resamples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError

Aggregate = Callable[[np.ndarray], np.ndarray]
"""Function that computes metrics, with the shape …, from statistics summed over images, with the shape … × S."""

RESAMPLES = 1000
LEVEL = 0.95
DRAWS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A metric and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Measure:
    """Metric of a corpus, represented by statistics of each image, N × S, and a function (`aggregate`) that computes
    the metric from their sums."""

    statistics: np.ndarray
    aggregate: Aggregate

    @classmethod
    def mean(cls, values: np.ndarray) -> "Measure":
        """Create a measure of the mean of N scores, one per image."""
        return cls.ratio(values, np.ones(len(values)))

    @classmethod
    def ratio(cls, sums: np.ndarray, counts: np.ndarray) -> "Measure":
        """Create a measure of the total of `sums` divided by the total of `counts`, which have one value per image.

        An example is the loss per token.
        """
        statistics = np.stack([sums, counts], axis=1).astype(np.float64)
        return cls(statistics, _quotient)

    def value(self) -> float:
        """Return the metric of the entire corpus."""
        return float(self.aggregate(self.statistics.sum(axis=0, keepdims=True))[0])

    def interval(self, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
        """Return the metric with its 95 % interval, which is the same in each call with the same seed."""
        return _interval(self.value(), self._resample(resamples, seed))

    def difference(self, other: "Measure") -> Interval:
        """Return this metric minus that of another model on the same images, with the paired 95 % interval.

        Both measures must have the images in the same order.

        Raises:
            UserError: If the numbers of images differ.
        """
        mine, theirs = len(self.statistics), len(other.statistics)
        if mine != theirs:
            raise UserError(
                f"a paired comparison needs the same images, got {mine} and {theirs}; use one split for both"
            )
        differences = self._resample() - other._resample()
        return _interval(self.value() - other.value(), differences)

    def _resample(self, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
        drawn = draw_resamples(len(self.statistics), resamples, seed)
        return self.aggregate(np.concatenate([part @ self.statistics for part in drawn]))


def draw_resamples(num_images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield bootstrap resamples in chunks that fit into memory. The rows of all chunks together are R × N.

    Each value is the number of times that an image was drawn. The same seed yields the same resamples.
    """
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // num_images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(num_images, size=(count, num_images))
        drawn += np.arange(count)[:, None] * num_images
        counts = np.bincount(drawn.ravel(), minlength=count * num_images)
        yield counts.reshape(count, num_images).astype(np.float64)


def sum_by_image(values: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Sum the rows of `values`, one per pair, that belong to the same image.

    The result, N × …, is in ascending order of image ids.
    """
    _, inverse = np.unique(image_ids, return_inverse=True)
    sums = np.zeros((inverse.max() + 1, *values.shape[1:]))
    np.add.at(sums, inverse, values)
    return sums


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _quotient(summed: np.ndarray) -> np.ndarray:
    return summed[..., 0] / summed[..., 1]
