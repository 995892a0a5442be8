"""What a study could have shown, and when two arms count as equal."""

import numpy as np
from scipy import special, stats

from grr_coca.study.statistics.paired import LEVEL, as_percent

POWER = 0.8
MARGIN = 2.0
"""Per cent: arms whose difference is smaller than this are called equal."""


def smallest_shown_effect(deviation: float, num_seeds: int, level: float = LEVEL, power: float = POWER) -> float:
    """The true mean that a two-sided t test of so many seeds finds with a chance of `power`.

    The non-centrality at which the t distribution's tail beyond the critical value has that chance (Cohen, Statistical
    Power Analysis, 1988, chapter 2); the other tail, below 1e-4 there, is left out.

    Args:
        deviation: of a difference, from seed to seed; the result has its unit.
        num_seeds: with one alone the answer is NaN.
        level: 1 − the chance of a false finding.
        power: chance to find it.
    """
    if num_seeds < 2:
        return float("nan")
    freedom = num_seeds - 1
    critical = stats.t.ppf((1 + level) / 2, freedom)
    return float(special.nctdtrinc(freedom, 1 - power, critical) * deviation / np.sqrt(num_seeds))


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
