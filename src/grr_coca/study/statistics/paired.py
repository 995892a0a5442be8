"""Paired differences: mean change, and intervals over seeds.

Two arms that share a seed share data, order and the initial weights of equal parts, so they are compared seed by seed.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
STUDIES = 2000
"""Simulated studies from which the coverage of the bootstrap is told."""

Samples = Float[np.ndarray, "*studies S"]
Numbers = Float[np.ndarray, "*studies"] | float
"""One for each study; of a single study numpy makes a plain number."""


def log_ratios(arm: Samples, baseline: Samples) -> Samples:
    """Natural log of arm over baseline, seed by seed: differences that do not depend on a metric's unit.

    Args:
        arm: values of a metric, all above zero.
        baseline: those of the baseline with the same seeds.
    """
    return np.log(arm) - np.log(baseline)


def as_percent(log_ratio: Numbers) -> Numbers:
    """A log ratio as a change in per cent: ln 0.98 gives −2."""
    return 100 * np.expm1(log_ratio)


def t_interval(values: Samples, level: float = LEVEL) -> tuple[Numbers, Numbers]:
    """Ends of the interval of the mean by Student's t (Student, Biometrika 6, 1908); NaN for a single seed.

    It is exact if the values are normal with an unknown deviation, for two seeds as for a hundred.
    """
    mean, error = values.mean(axis=-1), standard_error(values)
    with np.errstate(invalid="ignore"):
        width = stats.t.ppf((1 + level) / 2, max(values.shape[-1] - 1, 1)) * error
    return mean - width, mean + width


def standard_error(values: Samples) -> Numbers:
    """Standard error of the mean, from the sample's own deviation (n − 1); NaN for a single seed."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / np.sqrt(count)


def bootstrap_interval(values: Samples, level: float = LEVEL, resamples: int = RESAMPLES) -> tuple[Numbers, Numbers]:
    """Ends of the percentile bootstrap's interval of the mean (Efron, The Annals of Statistics 7, 1979).

    Over few seeds it is too narrow: `bootstrap_coverage` tells how much. It is given beside the t interval and decides
    nothing. NaN for a single seed.
    """
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan), np.full(values.shape[:-1], np.nan)
    found = stats.bootstrap(
        (values,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        batch=100,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return found.low, found.high


@lru_cache
def bootstrap_coverage(num_seeds: int, level: float = LEVEL) -> float:
    """Share of simulated studies, of normal differences, in which the bootstrap's interval holds the true mean."""
    drawn = np.random.default_rng(0).standard_normal((STUDIES, num_seeds))
    low, high = bootstrap_interval(drawn, level, resamples=500)
    return float(np.mean((low <= 0) & (high >= 0)))
