"""The script that fits by which numbers photographs are known."""

import numpy as np
import pytest

import fit_photographs


def test_fitted_curve_equals_the_curve_of_the_sampled_truths():
    rng = np.random.default_rng(0)
    numbers = rng.normal(3, 2, (20_000, 2))
    is_positive = rng.random(20_000) < 1 / (1 + np.exp(-(numbers @ [1.5, -0.5] - 2)))
    weights, offset = fit_photographs.fit([numbers[is_positive]], [numbers[~is_positive]])
    assert (*weights, offset) == pytest.approx((1.5, -0.5, -2), abs=0.15)


def test_each_set_counts_once_for_the_limit():
    large, small = (
        np.zeros(1000),
        np.array([0.0] * 13 + [3.0]),
    )  # 1 of 14 is twice what may be wrong, and one of two sets
    assert fit_photographs.limit_of([large, small]) == pytest.approx(3, abs=0.02)
    assert fit_photographs.limit_of([large, *[np.zeros(9)] * 2, small]) == pytest.approx(0, abs=0.02)
