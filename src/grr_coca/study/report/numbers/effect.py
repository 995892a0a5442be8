"""A change of a metric over several seeds, with everything that can be said of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from grr_coca.study.statistics.paired import LEVEL, Numbers, as_percent, bootstrap_interval, t_interval
from grr_coca.study.statistics.power import is_equivalent
from grr_coca.study.statistics.significance import sign_flip_p, t_test_p


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A change in per cent, from log ratios of one value a seed. What needs two seeds is None for a single one.

    `changes`: of each of the `seeds`. `change`: of all, the mean of their log ratios.
    `low`, `high`: the 95 % t interval. `bootstrap_low`, `bootstrap_high`: for comparison alone.
    `p_sign_flip`, `p_t`: two-sided, of one endpoint by itself.
    `deviation`: of the change from seed to seed.
    `is_equivalent`: the interval lies within ± 2 %.
    """

    seeds: tuple[int, ...]
    changes: tuple[float, ...]
    change: float
    low: float | None
    high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    p_sign_flip: float
    p_t: float | None
    deviation: float | None
    is_equivalent: bool

    @property
    def num_seeds(self) -> int:
        """Number of seeds."""
        return len(self.seeds)

    def interval_among(self, num_endpoints: int) -> tuple[float, float]:
        """The t interval that is corrected by Bonferroni for so many endpoints; it takes two seeds."""
        low, high = t_interval(np.log1p(np.array(self.changes) / 100), 1 - (1 - LEVEL) / num_endpoints)
        return float(as_percent(low)), float(as_percent(high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of no change."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def effect_of(log_ratio_by_seed: Mapping[int, float]) -> Effect | None:
    """The effect that log ratios of seeds amount to; None without any seed."""
    if not log_ratio_by_seed:
        return None
    values = np.array(list(log_ratio_by_seed.values()))
    low, high = t_interval(values)
    bootstrap_low, bootstrap_high = bootstrap_interval(values)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Effect(
        seeds=tuple(log_ratio_by_seed),
        changes=tuple(np.asarray(as_percent(values)).tolist()),
        change=float(as_percent(values.mean())),
        low=_number(as_percent(low)),
        high=_number(as_percent(high)),
        bootstrap_low=_number(as_percent(bootstrap_low)),
        bootstrap_high=_number(as_percent(bootstrap_high)),
        p_sign_flip=float(sign_flip_p(values)),
        p_t=_number(t_test_p(values)),
        deviation=_number(100 * deviation),
        is_equivalent=is_equivalent(float(low), float(high)),
    )


def _number(value: Numbers) -> float | None:
    return float(value) if np.isfinite(value) else None
