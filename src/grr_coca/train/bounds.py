"""Bounds of the numbers in a recipe. Each number is passed under the name of its key."""

import math

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
