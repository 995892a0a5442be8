"""What a study could have shown, held against studies that are simulated."""

import numpy as np
import pytest

from grr_coca.study.statistics.paired import t_interval
from grr_coca.study.statistics.power import is_equivalent, smallest_shown_effect
from grr_coca.study.statistics.significance import t_test_p

STUDIES = 4000


@pytest.mark.parametrize("level", [0.95, 1 - 0.05 / 6])
@pytest.mark.parametrize("num_seeds", [2, 3, 8, 20])
def test_the_smallest_effect_is_found_in_four_of_five_studies(num_seeds, level):
    effect = smallest_shown_effect(0.011, num_seeds, level)
    drawn = np.random.default_rng(3).normal(effect, 0.011, size=(STUDIES, num_seeds))
    assert np.mean(t_test_p(drawn) <= 1 - level) == pytest.approx(0.8, abs=0.025)


def test_more_seeds_show_smaller_effects():
    effects = [smallest_shown_effect(1.0, num_seeds) for num_seeds in (2, 3, 4, 8, 16, 64)]
    assert effects == sorted(effects, reverse=True)
    assert smallest_shown_effect(2.0, 8) == pytest.approx(2 * smallest_shown_effect(1.0, 8))
    assert np.isnan(smallest_shown_effect(1.0, 1))
    assert smallest_shown_effect(0.0, 8) == 0.0


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
