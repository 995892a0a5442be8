"""Statistics of a study: paired differences over seeds, tests, and power.

Two arms with the same seed share the data, their order, and the initial weights of equal parts. Arms are therefore
compared seed by seed, by the natural logarithm of the ratio of arm to baseline, which does not depend on the unit of
the metric.

Shapes: S seeds, E endpoints. Leading dimensions, if any, are studies that are computed in parallel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
from jaxtyping import Float

from grr_coca_study.plan import SIGNIFICANCE_LEVEL

LEVEL = 0.95
"""Confidence level of all intervals."""
RESAMPLES = 2000
"""Number of resamples in a bootstrap over seeds and images."""
MARGIN = 2.0
"""Equivalence margin, in per cent."""

Samples = Float[np.ndarray, "*studies S"]
Numbers = Float[np.ndarray, "*studies"] | float
"""One number per study. For a single study, NumPy returns a plain number."""

_POWER = 0.8
_LARGE_EFFECT = 2.0
"""Large effect, in standard deviations over seeds."""
_NUM_QUANTILES = 4000


# --- Paired differences


def as_percent(log_ratio: Numbers) -> Numbers:
    """Return a log ratio as a change in per cent. For example, ln 0.98 yields −2."""
    return 100 * np.expm1(log_ratio)


def t_test(values: Samples) -> tuple[Numbers, Numbers, Numbers]:
    """Return the ends of the 95 % t interval of the mean, and the two-sided p value of the t test (Student, Biometrika
    6, 1908).

    The results are exact for any number of seeds if the values are normally distributed. For a single seed, all results
    are NaN. If all values are zero, p is 1.
    """
    num_seeds = values.shape[-1]
    if num_seeds < 2:
        unknown = np.full(values.shape[:-1], np.nan)
        return unknown, unknown, unknown
    from scipy import stats  # lazy import, because a single seed does not need it

    mean, error = values.mean(axis=-1), values.std(axis=-1, ddof=1) / np.sqrt(num_seeds)
    width = stats.t.ppf((1 + LEVEL) / 2, num_seeds - 1) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean / error), num_seeds - 1)
    return mean - width, mean + width, np.where((mean == 0) & (error == 0), 1.0, p)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Change in per cent over several seeds. Fields that need two seeds are None for a single seed.

    Attributes:
        seeds: The compared seeds.
        changes: Change of each seed.
        change: Change, computed from the mean log ratio.
        low, high: Ends of the 95 % t interval, computed for log ratios.
        p_t: Two-sided p value of the t test, not corrected for several endpoints.
        deviation: Standard deviation of the log ratios over seeds, times 100.
        is_equivalent: Whether the interval is within ± 2 %.
    """

    seeds: tuple[int, ...]
    changes: tuple[float, ...]
    change: float
    low: float | None
    high: float | None
    p_t: float | None
    deviation: float | None
    is_equivalent: bool

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the interval. None for a single seed."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def effect_of(seeds: Sequence[int], log_ratios: Float[np.ndarray, " S"]) -> Effect:
    """Return the effect, given the log ratio of arm to baseline for each of at least one seed."""
    low, high, p = t_test(log_ratios)
    ends = float(as_percent(low)), float(as_percent(high))
    return Effect(
        seeds=tuple(seeds),
        changes=tuple(np.asarray(as_percent(log_ratios)).tolist()),
        change=float(as_percent(log_ratios.mean())),
        low=finite_or_none(ends[0]),
        high=finite_or_none(ends[1]),
        p_t=finite_or_none(p),
        deviation=finite_or_none(100 * log_ratios.std(ddof=1)) if len(log_ratios) > 1 else None,
        is_equivalent=is_equivalent(*ends),
    )


def finite_or_none(number: Numbers) -> float | None:
    """Return a number as a float, or None if it is NaN or infinite."""
    return float(number) if np.isfinite(number) else None


def percentiles(log_ratios: Float[np.ndarray, " R"]) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of log ratios of bootstrap resamples, as changes in per cent."""
    low, high = np.quantile(log_ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(as_percent(low)), float(as_percent(high))


def is_equivalent(low: float, high: float) -> bool:
    """Return whether an interval in per cent is within ± `MARGIN`, so that the arms are equivalent.

    This is the test of equivalence by two one-sided tests (TOST; Schuirmann, Journal of Pharmacokinetics and
    Biopharmaceutics 15, 1987). With a 95 % interval, each of the two tests has a level of 2.5 %.
    """
    return bool(low > -MARGIN and high < MARGIN)


def holm(p_values: Float[np.ndarray, "*studies E"]) -> Float[np.ndarray, "*studies E"]:
    """Return the p values of E endpoints with Holm's correction, which bounds the family-wise error rate.

    The k-th smallest p value is multiplied by E − k + 1, and raised to the previous result if that is larger (Holm,
    Scandinavian Journal of Statistics 6, 1979). The correction is also valid for correlated endpoints. An endpoint that
    was not measured (NaN) still counts as one of the E endpoints.
    """
    order = np.argsort(p_values, axis=-1)  # NaN comes last
    ordered = np.take_along_axis(p_values, order, axis=-1) * np.arange(p_values.shape[-1], 0, -1)
    result = np.empty_like(ordered)
    np.put_along_axis(result, order, np.minimum(np.maximum.accumulate(ordered, axis=-1), 1.0), axis=-1)
    return result


# --- Power


@lru_cache
def smallest_detectable_effect(num_seeds: int, num_endpoints: int) -> float:
    """Return the smallest true mean that a study detects with a power of 80 %, in standard deviations over seeds.

    As in the verdicts, effects are detected by the t test with Holm's correction. The computation assumes that no other
    endpoint is significant, so that the level is divided by the number of endpoints; otherwise, a smaller effect
    suffices. Differences are assumed to be normally distributed.

    Args:
        num_seeds: Number of seeds. For fewer than two, which allow no t test, the result is infinite.
        num_endpoints: Number of primary endpoints.
    """
    if num_seeds < 2:
        return float("inf")
    from scipy import optimize, stats

    critical = stats.t.isf(SIGNIFICANCE_LEVEL / num_endpoints / 2, num_seeds - 1)
    # t is a normally distributed number divided by the sample standard deviation. The two are independent, so the power
    # is a mean over quantiles of the standard deviation.
    quantiles = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    widths = critical * np.sqrt(stats.chi2.ppf(quantiles, num_seeds - 1) / (num_seeds - 1))

    def power(effect: float) -> float:
        centre = effect * np.sqrt(num_seeds)
        return float(np.mean(stats.norm.sf(widths - centre) + stats.norm.cdf(-widths - centre)))

    return float(optimize.brentq(lambda effect: power(effect) - _POWER, 0.0, 1000.0))


@lru_cache
def min_seeds(num_endpoints: int) -> int:
    """Return the minimum number of seeds for calling a difference better or worse.

    With this number, a true mean of two standard deviations over seeds is detected with a power of 80 %. The t test
    requires at least two seeds. With so few seeds, it detects only enormous effects, and relies on an uncertain
    standard deviation: a recall that differs by the same hit in both seeds would have p = 0.
    """
    return next(seeds for seeds in count(2) if smallest_detectable_effect(seeds, num_endpoints) <= _LARGE_EFFECT)
