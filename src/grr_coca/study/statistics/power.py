"""What a study could have shown, and when two arms count as equal."""

from functools import lru_cache

import numpy as np
from scipy import optimize

from grr_coca.study.statistics.fewest import LEVEL_OF_TESTS, fewest_seeds
from grr_coca.study.statistics.paired import as_percent

POWER = 0.8
STUDIES = 2000
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


def is_equivalent(low: float, high: float, margin: float = MARGIN) -> bool:
    """Whether an interval lies within ± `margin` per cent, so that the arms differ by less than that.

    The interval's way of two one-sided tests (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987).
    With an interval of 95 % each of them has a level of 2.5 %.

    Args:
        low: lower end, a log ratio.
        high: upper end.
        margin: in per cent.
    """
    return bool(-margin < as_percent(low) and as_percent(high) < margin)
