"""The statistics of a study: paired differences over seeds, tests, power, and factorial effects.

Two arms that share a seed share the data, their order and the initial weights of equal parts. So arms are compared seed
by seed.

Shapes: S seeds, E endpoints. Leading dimensions, if any, are studies that are computed side by side.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations, count

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from grr_coca.study.plan import SIGNIFICANCE_LEVEL

LEVEL = 0.95
"""Confidence level of all intervals."""
RESAMPLES = 2000
MARGIN = 2.0
"""Per cent: arms whose difference is smaller than this are called equal."""

Samples = Float[np.ndarray, "*studies S"]
Numbers = Float[np.ndarray, "*studies"] | float
"""One number for each study; numpy returns a plain number for a single study."""

_POWER = 0.8
_LARGE_EFFECT = 2.0
"""Standard deviations over seeds."""
_NUM_QUANTILES = 4000
_NUM_SIMULATED = 2000
"""Studies that are simulated to find the coverage of the bootstrap."""
_MAX_FLIPS = 2**16
"""Sign patterns of an exact test, enough for all patterns of 16 seeds; of more seeds, so many are drawn at random."""
_ROUNDING = 1e-12
"""An effect below this share of the largest value is rounding error, and set to zero."""


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
    mean, error = values.mean(axis=-1), standard_error(values)
    with np.errstate(invalid="ignore"):
        width = stats.t.ppf((1 + level) / 2, max(values.shape[-1] - 1, 1)) * error
    return mean - width, mean + width


def standard_error(values: Samples) -> Numbers:
    """Standard error of the mean, from the sample standard deviation (n − 1); NaN for a single seed."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / np.sqrt(count)


def bootstrap_interval(values: Samples, resamples: int = RESAMPLES) -> tuple[Numbers, Numbers]:
    """Ends of the percentile bootstrap interval of the mean (Efron, The Annals of Statistics 7, 1979).

    It is too narrow over few seeds; `bootstrap_coverage` says by how much. It is reported beside the t interval, and no
    verdict uses it. NaN for a single seed.
    """
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan), np.full(values.shape[:-1], np.nan)
    found = stats.bootstrap(
        (values,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        batch=100,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return found.low, found.high


@lru_cache
def bootstrap_coverage(num_seeds: int) -> float:
    """Coverage of the bootstrap's 95 % interval for normal differences, from simulated studies."""
    drawn = np.random.default_rng(0).standard_normal((_NUM_SIMULATED, num_seeds))
    low, high = bootstrap_interval(drawn, resamples=500)
    return float(np.mean((low <= 0) & (high >= 0)))


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


def sign_flip_p(values: Samples) -> Numbers:
    """Two-sided p of the sign-flip test of the mean (Fisher, The Design of Experiments, 1935, section 21).

    If the arms do not differ, each seed's difference is as likely to have the other sign. p is the share of all 2^S
    sign patterns whose mean is at least as far from zero as the observed mean. The test assumes that the distribution
    is symmetric, and nothing else. The smallest possible p of S seeds is 2 / 2^S. No verdict uses it: it is a second
    reading.
    """
    if values.shape[-1] < 2:  # scipy refuses these; both patterns are equally far from zero
        return np.ones(values.shape[:-1])
    found = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=_MAX_FLIPS,
        batch=256,
        rng=np.random.default_rng(0),
    )
    return np.minimum(found.pvalue, 1.0)


def t_test_p(values: Samples) -> Numbers:
    """Two-sided p of the one-sample t test (Student, Biometrika 6, 1908), by which verdicts are given.

    NaN for a single seed, 1 if all values are zero.
    """
    mean, error = values.mean(axis=-1), standard_error(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean / error), max(values.shape[-1] - 1, 1))
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
    critical = stats.t.isf(SIGNIFICANCE_LEVEL / num_endpoints / 2, num_seeds - 1)
    return float(optimize.brentq(lambda effect: _t_power(effect, num_seeds, critical) - _POWER, 0.0, 1000.0))


def _t_power(effect: float, num_seeds: int, critical: float) -> float:
    """Probability that |t| exceeds its critical value, if the true mean is `effect` standard deviations.

    t is a normal number over the sample deviation, which is independent of it: the mean over the deviation's quantiles.
    """
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


# --- Factorial

Cell = frozenset[str]
"""A corner of a factorial: the parts that its arm has."""


def factorial_effects(cells: Mapping[Cell, Samples]) -> dict[tuple[str, ...], Samples]:
    """Main effects and interactions of a two-level factorial, a value for each seed.

    An effect is the mean of the corners in which the signs of its parts multiply to plus, minus the mean of the others
    (Yates, The Design and Analysis of Factorial Experiments, 1937; Montgomery, Design and Analysis of Experiments,
    chapter 6). So a main effect is the change that a part makes, averaged over all combinations of the other parts. The
    interaction of A and B is half the difference between the effect of A with B and without B. Of three parts, the main
    effects and the three-way interaction add up to the corner with all parts minus the corner with none.

    Each seed is a block: what it adds to all corners cancels. Each effect gets its error from its own values over
    seeds, so the effects of one seed may be correlated.

    Args:
        cells: values of every corner (log of a metric), seeds in the same order.

    Returns:
        Effects by the names of their parts, main effects first.
    """
    parts = [part for cell in cells if len(cell) == 1 for part in cell]  # in the order of the caller
    assert len(cells) == 2 ** len(parts), "every corner is needed"
    half = len(cells) / 2
    rounding = _ROUNDING * max(float(np.abs(values).max(initial=0.0)) for values in cells.values())
    effects = {
        chosen: np.sum([_sign(chosen, cell) * values for cell, values in cells.items()], axis=0) / half
        for size in range(1, len(parts) + 1)
        for chosen in combinations(parts, size)
    }
    # Rounding errors of equal corners may be the same with every seed, and would be significant.
    return {chosen: np.where(np.abs(values) <= rounding, 0.0, values) for chosen, values in effects.items()}


def _sign(chosen: tuple[str, ...], cell: Cell) -> int:
    """Product over the chosen parts of +1 where the corner has the part and −1 where not."""
    missing = sum(part not in cell for part in chosen)
    return -1 if missing % 2 else 1
