"""Confidence intervals of measured numbers, by a bootstrap over images (Efron and Tibshirani, 1993).

Images are sampled with replacement, the same number as in the split. All pairs of an image are sampled together.
Quantities of the entire corpus, such as the document frequencies of CIDEr or the retrieval candidates, stay the same.

Shapes: N images, S statistics, R resamples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError

Aggregate = Callable[[np.ndarray], np.ndarray]
"""Function that computes the metric, …, from statistics summed over images, … × S."""

RESAMPLES = 1000
LEVEL = 0.95
DRAWS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A metric and its percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Measure:
    """Metric of a corpus, as statistics of each image, N × S, and a function (`aggregate`) from their sum to the
    metric."""

    statistics: np.ndarray
    aggregate: Aggregate

    @classmethod
    def mean(cls, values: np.ndarray) -> "Measure":
        """Create the measure whose metric is the mean of one score per image, N."""
        return cls.ratio(values, np.ones(len(values)))

    @classmethod
    def ratio(cls, sums: np.ndarray, counts: np.ndarray) -> "Measure":
        """Create the measure whose metric is the sum over all images divided by the sum of their counts, such as a loss
        per token.
        """
        statistics = np.stack([sums, counts], axis=1).astype(np.float64)
        return cls(statistics, _quotient)

    def value(self) -> float:
        """Return the metric of the entire corpus."""
        return float(self.aggregate(self.statistics.sum(axis=0, keepdims=True))[0])

    def interval(self, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
        """Return the metric with its 95 % interval."""
        return _interval(self.value(), self._resampled(resamples, seed))

    def difference(self, other: "Measure") -> Interval:
        """Return this metric minus another model's on the same images, with the 95 % interval of the paired difference.

        Raises:
            UserError: If the numbers of images differ.
        """
        mine, theirs = len(self.statistics), len(other.statistics)
        if mine != theirs:
            raise UserError(f"a paired comparison needs the same images, got {mine} and {theirs} images")
        differences = self._resampled() - other._resampled()
        return _interval(self.value() - other.value(), differences)

    def _resampled(self, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
        drawn = draws(len(self.statistics), resamples, seed)
        return self.aggregate(np.concatenate([part @ self.statistics for part in drawn]))


def draws(num_images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield bootstrap resamples as the count of each image, R × N, in chunks that fit into memory.

    The same seed yields the same resamples.
    """
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // num_images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(num_images, size=(count, num_images))
        drawn += np.arange(count)[:, None] * num_images
        counts = np.bincount(drawn.ravel(), minlength=count * num_images)
        yield counts.reshape(count, num_images).astype(np.float64)


def by_image(values: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Sum the rows of pairs that belong to the same image.

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
