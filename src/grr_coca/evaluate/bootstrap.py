"""Confidence intervals of measured numbers: bootstrap over images (Efron and Tibshirani, 1993).

Images are drawn with replacement, as many as there are; what belongs to one image is drawn together. What a metric
takes from the whole corpus, such as the document frequency of CIDEr or the candidates of retrieval, stays as it is.

Shapes: N images, S statistics, R resamples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from grr_coca.errors import UserError

Aggregate = Callable[[np.ndarray], np.ndarray]
"""From statistics summed over images, … × S, to the metric, …"""

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
    """A metric of a corpus as a function of the sum of what each image contributes, N × S."""

    statistics: np.ndarray
    aggregate: Aggregate

    @classmethod
    def mean(cls, values: np.ndarray) -> "Measure":
        """The mean of a score per image, N."""
        return cls.ratio(values, np.ones(len(values)))

    @classmethod
    def ratio(cls, sums: np.ndarray, counts: np.ndarray, transform: Aggregate | None = None) -> "Measure":
        """Sum over count of all images, such as a loss per token, and a function of it, such as its exponential."""
        statistics = np.stack([sums, counts], axis=1).astype(np.float64)
        return cls(statistics, _quotient if transform is None else lambda summed: transform(_quotient(summed)))

    def value(self) -> float:
        """The metric of the corpus itself."""
        return float(self.aggregate(self.statistics.sum(axis=0, keepdims=True))[0])

    def interval(self, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
        """The metric with its 95 % interval."""
        return _interval(self.value(), self._resampled(resamples, seed))

    def difference(self, other: "Measure", resamples: int = RESAMPLES, seed: int = 0) -> Interval:
        """This metric less another model's on the same images, with the 95 % interval of the paired difference.

        Raises:
            UserError: the two are of different numbers of images.
        """
        mine, theirs = len(self.statistics), len(other.statistics)
        if mine != theirs:
            raise UserError(f"a paired comparison needs the same images, here are {mine} and {theirs}")
        differences = self._resampled(resamples, seed) - other._resampled(resamples, seed)
        return _interval(self.value() - other.value(), differences)

    def _resampled(self, resamples: int, seed: int) -> np.ndarray:
        drawn = draws(len(self.statistics), resamples, seed)
        return self.aggregate(np.concatenate([part @ self.statistics for part in drawn]))


def draws(num_images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Counts of the draws of each image, R × N, in parts that fit memory. The same seed gives the same draws."""
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // num_images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(num_images, size=(count, num_images))
        drawn += np.arange(count)[:, None] * num_images
        counts = np.bincount(drawn.ravel(), minlength=count * num_images)
        yield counts.reshape(count, num_images).astype(np.float64)


def by_image(values: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Sums of what belongs to the same image, in ascending order of ids: N × … from rows of pairs."""
    _, inverse = np.unique(image_ids, return_inverse=True)
    sums = np.zeros((inverse.max() + 1, *values.shape[1:]))
    np.add.at(sums, inverse, values)
    return sums


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _quotient(summed: np.ndarray) -> np.ndarray:
    return summed[..., 0] / summed[..., 1]
