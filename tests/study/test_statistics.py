"""Statistics of a study, against worked examples, references, and simulated studies whose truth is known."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from grr_coca_study.statistics import (
    SIGNIFICANCE_LEVEL,
    as_percent,
    effect_of,
    holm,
    is_equivalent,
    min_seeds,
    smallest_detectable_effect,
    t_test,
)

NUM_STUDIES = 4000


def coverage(values: np.ndarray, truth: float) -> float:
    low, high, _ = t_test(values)
    return float(np.mean((low <= truth) & (truth <= high)))


def test_effect_is_the_mean_log_ratio_as_a_percentage():
    effect = effect_of((3, 5), np.log([0.98, 0.96]))
    assert effect.seeds == (3, 5)
    assert effect.changes == pytest.approx((-2.0, -4.0))
    assert effect.change == pytest.approx(100 * (math.sqrt(0.98 * 0.96) - 1))
    assert effect.low < -4 < -2 < 0 < effect.high, "two seeds tell little"


def test_one_seed_has_a_change_and_nothing_else():
    effect = effect_of((0,), np.log([1.5]))
    assert effect.change == pytest.approx(50.0)
    assert (effect.interval, effect.p_t, effect.deviation) == (None,) * 3
    assert not effect.is_equivalent
    assert np.shape(t_test(np.zeros((5, 1)))) == (3, 5)


def test_t_interval_is_students_on_a_worked_example():
    # Student's own example of 1908, additional hours of sleep: mean 1.58, and 0.700 to 2.460 at 95 %.
    hours = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert t_test(hours)[:2] == pytest.approx((0.700, 2.460), abs=5e-4)


def test_t_test_equals_that_of_scipy():
    from scipy import stats  # late: half a second, in each worker

    values = np.random.default_rng(1).normal(0.5, 1.0, size=(20, 7))
    assert t_test(values)[2] == pytest.approx(stats.ttest_1samp(values, 0, axis=-1).pvalue)
    assert t_test(np.zeros(4))[2] == 1.0


@pytest.mark.parametrize("num_seeds", [3, 8])
@pytest.mark.parametrize("truth", [0.0, -0.024])
def test_t_intervals_cover_the_truth_in_95_of_100_studies(num_seeds, truth):
    drawn = np.random.default_rng(num_seeds).normal(truth, 0.011, size=(NUM_STUDIES, num_seeds))
    assert 0.93 <= coverage(drawn, truth) <= 0.97


def simulated(truths: list[float]) -> np.ndarray:
    """p values of studies × endpoints, which hang together as the CoCa loss does with its two parts; eight seeds."""
    rng = np.random.default_rng(11)
    shared, own = rng.normal(0, 0.01, size=(2000, 1, 8)), rng.normal(0, 0.01, size=(2000, len(truths), 8))
    return t_test(np.array(truths)[None, :, None] + shared + own)[2]


def test_holm_on_a_worked_example():
    # Holm's own steps: 0.01 · 4, 0.02 · 3, 0.03 · 2, 0.04 · 1, and none below the one before.
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([0.004, np.nan]))[0] == pytest.approx(0.008)


@pytest.mark.parametrize("truths", [[0.0] * 6, [0.0] * 3 + [-0.05] * 3], ids=["none differs", "half differ"])
def test_false_findings_are_rare_among_all_endpoints_together(truths):
    p_values, is_true = simulated(truths), np.array(truths) == 0
    found = holm(p_values) <= SIGNIFICANCE_LEVEL
    assert np.mean(found[:, is_true].any(axis=1)) <= 0.065
    if is_true.all():
        assert np.mean((p_values <= SIGNIFICANCE_LEVEL).any(axis=1)) > 0.1, "without correction, they are not"
    else:
        assert np.mean(found[:, ~is_true]) > 0.5, "and a large difference is found"


@pytest.mark.parametrize(("num_seeds", "num_endpoints"), [(5, 1), (8, 6), (15, 2)])
def test_power_for_the_smallest_effect_is_four_in_five(num_seeds, num_endpoints):
    effect = 0.011 * smallest_detectable_effect(num_seeds, num_endpoints)
    p_values = np.ones((NUM_STUDIES, num_endpoints))  # nothing is found in the others
    p_values[:, 0] = t_test(np.random.default_rng(3).normal(effect, 0.011, size=(NUM_STUDIES, num_seeds)))[2]
    assert np.mean(holm(p_values)[:, 0] <= SIGNIFICANCE_LEVEL) == pytest.approx(0.8, abs=0.02)


def test_power_equals_published_tables():
    # Cohen, Statistical Power Analysis, 1988: for half a standard deviation, the t test at 5 % takes 34 pairs.
    assert smallest_detectable_effect(34, 1) < 0.5 < smallest_detectable_effect(33, 1)
    # Of two seeds, the sample deviation is the absolute value of a standard normal number, and t is Cauchy without an
    # effect. A large effect d is detected if that number lies within √2 · d / c of zero, with c the critical value.
    critical = 1 / math.tan(math.pi * 0.05 / 2)
    within = NormalDist().inv_cdf(0.9)
    assert smallest_detectable_effect(2, 1) == pytest.approx(critical * within / math.sqrt(2), rel=0.01)


def test_verdict_needs_enough_seeds_for_two_deviations():
    assert [min_seeds(count) for count in (1, 2, 6, 7)] == [5, 6, 7, 7]
    assert smallest_detectable_effect(7, 6) <= 2 < smallest_detectable_effect(6, 6)
    assert smallest_detectable_effect(1, 1) == math.inf


@pytest.mark.parametrize(
    ("low", "high", "equal"),
    [(-0.01, 0.015, True), (-0.03, 0.01, False), (0.001, 0.025, False), (-0.0202, 0.0, True), (0.0, 0.0199, False)],
)
def test_arms_are_equal_if_the_interval_is_within_2_per_cent(low, high, equal):
    # ln 0.98 = −0.0202 and ln 1.02 = 0.0198: the margins are not the same as log ratios.
    assert is_equivalent(as_percent(low), as_percent(high)) == equal
