"""What a study could have shown, held against studies that are simulated."""

import math

import numpy as np
import pytest
from scipy import stats

from grr_coca.study.statistics import (
    SIGNIFICANCE_LEVEL,
    holm,
    is_equivalent,
    sign_flip_p,
    smallest_detectable_effect,
    t_interval,
)

STUDIES = 4000


@pytest.mark.parametrize(("num_seeds", "num_endpoints"), [(6, 1), (8, 6), (15, 2)])
def test_the_smallest_effect_is_called_better_or_worse_in_four_of_five_studies(num_seeds, num_endpoints):
    effect = 0.011 * smallest_detectable_effect(num_seeds, num_endpoints)
    drawn = np.random.default_rng(3).normal(effect, 0.011, size=(400, num_seeds))
    p_values = np.ones((400, num_endpoints))
    p_values[:, 0] = sign_flip_p(drawn)  # nothing is found in the others
    assert np.mean(holm(p_values)[:, 0] <= SIGNIFICANCE_LEVEL) == pytest.approx(0.8, abs=0.06)


def test_with_eight_seeds_and_six_endpoints_all_seeds_must_agree():
    effect = smallest_detectable_effect(8, 6)
    assert stats.norm.cdf(effect) ** 8 == pytest.approx(0.8, abs=0.02)


def test_more_seeds_and_fewer_endpoints_show_smaller_effects():
    effects = [smallest_detectable_effect(num_seeds, 1) for num_seeds in (6, 8, 12, 16, 32, 80)]
    assert effects == sorted(effects, reverse=True)
    assert smallest_detectable_effect(8, 1) < smallest_detectable_effect(8, 6)
    assert smallest_detectable_effect(7, 6) == math.inf, "it takes eight"


@pytest.mark.parametrize(
    ("low", "high", "equal"),
    [(-0.01, 0.015, True), (-0.03, 0.01, False), (0.001, 0.025, False), (-0.0202, 0.0, True), (0.0, 0.0199, False)],
)
def test_arms_are_equal_when_the_interval_lies_within_two_per_cent(low, high, equal):
    # ln 0.98 = −0.0202 and ln 1.02 = 0.0198: the margins are not the same as log ratios.
    assert is_equivalent(low, high) is equal


def test_arms_at_the_margin_are_seldom_called_equal():
    drawn = np.random.default_rng(4).normal(np.log(1.02), 0.005, size=(STUDIES, 8))
    called = [is_equivalent(low, high) for low, high in zip(*t_interval(drawn), strict=True)]
    assert np.mean(called) <= 0.035
