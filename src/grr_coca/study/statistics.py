"""Tests of no difference, and the correction for testing several.

How many seeds a study needs at least. Reading this needs no scipy, which reports of single seeds do without.

Paired differences: mean change, and intervals over seeds.

Two arms that share a seed share data, order and the initial weights of equal parts, so they are compared seed by seed.

Main effects and interactions of a two-level factorial, with the seed as block.

What a study could have shown, and when two arms count as equal.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

LEVEL_OF_TESTS = 0.05
"""Chance of any false finding among the primary endpoints of a study."""


def fewest_seeds(num_endpoints: int) -> int:
    """Seeds with which the exact test can pass Holm's correction at all: its smallest p is 2 / 2^seeds."""
    seeds = 2
    while num_endpoints * 2.0 ** (1 - seeds) > LEVEL_OF_TESTS:
        seeds += 1
    return seeds


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


def bootstrap_interval(values: Samples, resamples: int = RESAMPLES) -> tuple[Numbers, Numbers]:
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
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return found.low, found.high


@lru_cache
def bootstrap_coverage(num_seeds: int) -> float:
    """Share of simulated studies, of normal differences, in which the bootstrap's interval holds the true mean."""
    drawn = np.random.default_rng(0).standard_normal((STUDIES, num_seeds))
    low, high = bootstrap_interval(drawn, resamples=500)
    return float(np.mean((low <= 0) & (high >= 0)))


Cell = frozenset[str]
"""A corner of the factorial: the parts that its arm has."""
ROUNDING = 1e-12
"""An effect that is smaller than this share of the largest value is none."""


def factorial_effects(cells: Mapping[Cell, Samples]) -> dict[tuple[str, ...], Samples]:
    """The effect of each part and each set of parts, seed by seed: as many as there are corners, less one.

    An effect is the mean of the corners in which the signs of its parts multiply to plus, less the mean of the others
    (Yates, The Design and Analysis of Factorial Experiments, 1937; Montgomery, Design and Analysis of Experiments,
    chapter 6). A main effect is thus what a part changes on average over all combinations of the others; an interaction
    of two is half of how much more one changes with the other than without. Of three parts A, B and C, the main
    effects and the interaction of all three add up to the corner with all parts less the corner with none.

    A seed is a block: what it adds to all of its corners cancels. Each effect has its own values over seeds, and so its
    own error; nothing is assumed of how the effects of one seed hang together.

    Args:
        cells: values of every corner (log of a metric), seeds in the same order.

    Returns:
        Effects by the names of their parts, main effects first.
    """
    parts = [part for cell in cells if len(cell) == 1 for part in cell]  # in the order in which they are given
    assert len(cells) == 2 ** len(parts), "every corner is needed"
    half = len(cells) / 2
    rounding = ROUNDING * max(float(np.abs(values).max(initial=0.0)) for values in cells.values())
    effects = {
        chosen: np.sum([_sign(chosen, cell) * values for cell, values in cells.items()], axis=0) / half
        for size in range(1, len(parts) + 1)
        for chosen in combinations(parts, size)
    }
    # What rounding leaves of corners that are equal may be the same with every seed, and would be a sure finding.
    return {chosen: np.where(np.abs(values) <= rounding, 0.0, values) for chosen, values in effects.items()}


def _sign(chosen: tuple[str, ...], cell: Cell) -> int:
    """Product over the chosen parts of +1 where the corner has the part and −1 where not."""
    missing = sum(part not in cell for part in chosen)
    return -1 if missing % 2 else 1


POWER = 0.8
"""Simulated studies from which the power is told."""
MOST_PATTERNS = 4096
"""Sign patterns against which a simulated study is held; of 14 seeds or more, so many are drawn."""
MARGIN = 2.0
"""Per cent: arms whose difference is smaller than this are called equal."""


@lru_cache
def smallest_shown_effect(num_seeds: int, num_endpoints: int) -> float:
    """The true mean, in deviations from seed to seed, that a study calls better or worse with a chance of `POWER`.

    It is told by the rule that decides: the exact sign-flip test, which has to pass Holm's correction first of all
    endpoints, so at the level divided by their number. Simulated, with normal differences. Where others are found
    too, a smaller effect is enough.

    Args:
        num_seeds: of the study.
        num_endpoints: the primary ones.

    Returns:
        Infinity if so few seeds cannot show anything.
    """
    if num_seeds < fewest_seeds(num_endpoints):
        return float("inf")
    rng = np.random.default_rng(0)
    drawn, signs = rng.standard_normal((STUDIES, num_seeds)), _sign_patterns(num_seeds, rng)
    flipped = drawn @ signs.T

    def lacking_power(effect: float) -> float:
        sums = np.abs(flipped + effect * signs.sum(axis=1))
        found = np.abs(drawn.sum(axis=1) + effect * num_seeds)
        p = np.mean(sums >= found[:, np.newaxis] * (1 - 1e-9), axis=1)
        return float(np.mean(p <= LEVEL_OF_TESTS / num_endpoints)) - POWER

    return float(optimize.bisect(lacking_power, 0.0, 10.0, xtol=1e-3))


def _sign_patterns(num_seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Half of all patterns, as the others are their opposites, or a sample of them; none flipped is among them."""
    count = 2 ** (num_seeds - 1)
    if count > MOST_PATTERNS:
        drawn = rng.choice((1, -1), (MOST_PATTERNS, num_seeds))
        drawn[0] = 1
        return drawn
    return 1 - 2 * ((np.arange(count)[:, np.newaxis] >> np.arange(num_seeds)) & 1)


def is_equivalent(low: float, high: float) -> bool:
    """True if an interval lies within ± MARGIN per cent, so that the arms differ by less than that.

    The interval's way of two one-sided tests (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987).
    With an interval of 95 % each of them has a level of 2.5 %.

    Args:
        low: lower end, a log ratio.
        high: upper end.
    """
    return bool(as_percent(low) > -MARGIN and as_percent(high) < MARGIN)


MOST_FLIPS = 2**16
"""Sign patterns that are all gone through, up to 16 seeds; of more, so many are drawn."""


def sign_flip_p(values: Samples) -> Numbers:
    """Two-sided p of the sign-flip test of the mean (Fisher, The Design of Experiments, 1935, section 21).

    If the arms do not differ, each seed's difference is as likely to have the other sign. p is the share of all 2^S
    sign patterns whose mean is at least as far from zero as the one that was found. Nothing is assumed of the shape of
    the distribution but its symmetry. The smallest p of S seeds is 2 / 2^S.
    """
    if values.shape[-1] < 2:  # which scipy refuses: both patterns are as far from zero
        return np.ones(values.shape[:-1])
    found = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=MOST_FLIPS,
        batch=256,
        rng=np.random.default_rng(0),
    )
    return np.minimum(found.pvalue, 1.0)


def t_test_p(values: Samples) -> Numbers:
    """Two-sided p of the one-sample t test (Student, Biometrika 6, 1908); NaN for a single seed, 1 if all are zero."""
    mean, error = values.mean(axis=-1), standard_error(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean / error), max(values.shape[-1] - 1, 1))
    return np.where((mean == 0) & (error == 0), 1.0, p)


def holm(p_values: Float[np.ndarray, "*studies E"]) -> Float[np.ndarray, "*studies E"]:
    """p of each of E endpoints, adjusted so that the chance of any false finding among them stays below the level.

    Holm, Scandinavian Journal of Statistics 6, 1979: the k-th smallest is multiplied by E − k + 1, and none is smaller
    than the one before. It holds whatever the endpoints have to do with each other. An endpoint that was not measured
    (NaN) stays one of the E.
    """
    order = np.argsort(p_values, axis=-1)  # NaN last
    count = p_values.shape[-1]
    ordered = np.take_along_axis(p_values, order, axis=-1) * np.arange(count, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(ordered, axis=-1), 1.0)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result
