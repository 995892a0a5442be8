"""The statistics of a study: paired differences over seeds, tests, and power.

Two arms that share a seed share the data, their order and the initial weights of equal parts. So arms are compared seed
by seed.

Shapes: S seeds, E endpoints. Leading dimensions, if any, are studies that are computed side by side.
"""

from functools import lru_cache
from itertools import count

import numpy as np
from jaxtyping import Float

from grr_coca.study.plan import SIGNIFICANCE_LEVEL

LEVEL = 0.95
"""Confidence level of all intervals."""
RESAMPLES = 2000
"""Draws of a bootstrap over seeds and images."""
MARGIN = 2.0
"""Per cent: arms whose difference is smaller than this are called equal."""

Samples = Float[np.ndarray, "*studies S"]
Numbers = Float[np.ndarray, "*studies"] | float
"""One number for each study; numpy returns a plain number for a single study."""

_POWER = 0.8
_LARGE_EFFECT = 2.0
"""Standard deviations over seeds."""
_NUM_QUANTILES = 4000


# --- Paired differences


def log_ratios(arm: Samples, baseline: Samples) -> Samples:
    """Natural log of arm over baseline, seed by seed: a difference that does not depend on the metric's unit.

    Args:
        arm: values of a metric, all above zero.
        baseline: those of the baseline with the same seeds.
    """
    return np.log(arm) - np.log(baseline)


def as_percent(log_ratio: Numbers) -> Numbers:
    """A log ratio as a change in per cent: ln 0.98 gives −2."""
    return 100 * np.expm1(log_ratio)


def t_interval(values: Samples, level: float = LEVEL) -> tuple[Numbers, Numbers]:
    """Ends of the t interval of the mean (Student, Biometrika 6, 1908); NaN for a single seed.

    It is exact for any number of seeds if the values are normal.
    """
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan), np.full(values.shape[:-1], np.nan)
    from scipy import stats  # late: a study of one seed needs none

    mean, error = values.mean(axis=-1), standard_error(values)
    width = stats.t.ppf((1 + level) / 2, values.shape[-1] - 1) * error
    return mean - width, mean + width


def standard_error(values: Samples) -> Numbers:
    """Standard error of the mean, from the sample standard deviation (n − 1); NaN for a single seed."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / np.sqrt(count)


def is_equivalent(low: float, high: float) -> bool:
    """True if an interval lies within ± `MARGIN` per cent: the arms are equivalent.

    This is the test of equivalence by two one-sided tests (TOST; Schuirmann, Journal of Pharmacokinetics and
    Biopharmaceutics 15, 1987). With an interval of 95 %, each of them has a level of 2.5 %.

    Args:
        low: lower end, a log ratio.
        high: upper end.
    """
    return bool(as_percent(low) > -MARGIN and as_percent(high) < MARGIN)


# --- Tests


def t_test_p(values: Samples) -> Numbers:
    """Two-sided p of the one-sample t test (Student, Biometrika 6, 1908), by which verdicts are given.

    NaN for a single seed, 1 if all values are zero.
    """
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    from scipy import stats  # late: a study of one seed needs none

    mean, error = values.mean(axis=-1), standard_error(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean / error), values.shape[-1] - 1)
    return np.where((mean == 0) & (error == 0), 1.0, p)


def holm(p_values: Float[np.ndarray, "*studies E"]) -> Float[np.ndarray, "*studies E"]:
    """p values of E endpoints with Holm's correction, which bounds the family-wise error rate.

    Holm, Scandinavian Journal of Statistics 6, 1979: the k-th smallest p is multiplied by E − k + 1, and raised to the
    one before if it is smaller. It holds for correlated endpoints too. An endpoint that was not measured (NaN) still
    counts as one of the E.
    """
    order = np.argsort(p_values, axis=-1)  # NaN last
    count = p_values.shape[-1]
    ordered = np.take_along_axis(p_values, order, axis=-1) * np.arange(count, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(ordered, axis=-1), 1.0)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result


# --- Power


@lru_cache
def smallest_detectable_effect(num_seeds: int, num_endpoints: int) -> float:
    """The smallest true mean that a study detects with a power of 80 %, in standard deviations over seeds.

    An effect is detected as in the verdicts: by the t test with Holm's correction. It is assumed that no other endpoint
    is significant, so that the level is divided by the number of endpoints; otherwise, a smaller effect suffices.
    Differences are normal.

    Args:
        num_seeds: number of seeds; one alone has no t test, and detects nothing.
        num_endpoints: number of primary endpoints.
    """
    if num_seeds < 2:
        return float("inf")
    from scipy import optimize, stats

    critical = stats.t.isf(SIGNIFICANCE_LEVEL / num_endpoints / 2, num_seeds - 1)
    return float(optimize.brentq(lambda effect: _t_power(effect, num_seeds, critical) - _POWER, 0.0, 1000.0))


def _t_power(effect: float, num_seeds: int, critical: float) -> float:
    """Probability that |t| exceeds its critical value, if the true mean is `effect` standard deviations.

    t is a normal number over the sample deviation, which is independent of it: the mean over the deviation's quantiles.
    """
    from scipy import stats

    quantiles = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    widths = critical * np.sqrt(stats.chi2.ppf(quantiles, num_seeds - 1) / (num_seeds - 1))
    centre = effect * np.sqrt(num_seeds)
    return float(np.mean(stats.norm.sf(widths - centre) + stats.norm.cdf(-widths - centre)))


@lru_cache
def min_seeds(num_endpoints: int) -> int:
    """Fewest seeds with which a difference is called better or worse.

    With so many, a true mean of two standard deviations over seeds is detected with a power of 80 %. The t test itself
    takes two seeds. But with so few it finds only enormous effects, and stands on a deviation that is hardly known: a
    recall that differs by the same hit in both seeds would have p = 0.
    """
    return next(seeds for seeds in count(2) if smallest_detectable_effect(seeds, num_endpoints) <= _LARGE_EFFECT)
