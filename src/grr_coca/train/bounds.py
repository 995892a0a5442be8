"""Bounds of the numbers in a recipe. Each number is passed under the name of its key."""

import math
from collections.abc import Mapping

from grr_coca.data.order import PERIOD, mixture_shares, visits_in_period
from grr_coca.errors import UserError


def require_at_least(bound: float, **numbers: float) -> None:
    """Refuse numbers below the bound, and NaN."""
    for name, number in numbers.items():
        if not number >= bound:
            raise UserError(f"{name} {number} is out of range; give {bound} or more")


def require_share(**numbers: float) -> None:
    """Refuse numbers that are not in [0, 1)."""
    for name, number in numbers.items():
        if not 0 <= number < 1:
            raise UserError(f"{name} {number} is out of range; give 0 or more, and less than 1")


def require_finite(**numbers: float) -> None:
    """Refuse infinity and NaN."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise UserError(f"{name} {number} is out of range; give a finite number")


def require_visits(mix: Mapping[str, float]) -> None:
    """Refuse shares of a mixture that are rounded to nothing, so that a source would never be visited.

    Args:
        mix: the share of the samples that comes from each further source, by path. `train` has what they leave.
    """
    shares = mixture_shares(mix)
    of_train, *of_others = visits_in_period(shares)
    never, least = f"none of {PERIOD:,} samples would come from there", f"more than {1 / PERIOD:g}"
    if not of_train:
        raise UserError(f"mix: {shares[0]:g}, which it leaves to train, is out of range: {never}; leave {least}")
    for (path, share), visits in zip(mix.items(), of_others, strict=True):
        if not visits:
            raise UserError(f"mix: {path} {share:g} is out of range: {never}; give {least}, or remove it")
