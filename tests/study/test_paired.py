"""Intervals over seeds, worked out by hand and on simulated studies whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from grr_coca.study.statistics import (
    as_percent,
    bootstrap_coverage,
    bootstrap_interval,
    log_ratios,
    standard_error,
    t_interval,
)

STUDIES = 4000


def coverage(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


def test_a_ratio_is_a_change_in_per_cent():
    ratios = log_ratios(np.array([1.96, 3.0]), np.array([2.0, 2.0]))
    assert as_percent(ratios) == pytest.approx([-2.0, 50.0])
    assert as_percent(log_ratios(np.array([2.0]), np.array([1.96]))) == pytest.approx([100 / 49])


def test_the_t_interval_is_students_on_a_worked_example():
    # Student's own example of 1908, additional hours of sleep: mean 1.58, and 0.700 to 2.460 at 95 %.
    hours = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert t_interval(hours) == pytest.approx((0.700, 2.460), abs=5e-4)
    reference = stats.ttest_1samp(hours, 0).confidence_interval(0.9)
    assert t_interval(hours, 0.9) == pytest.approx(tuple(reference))


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
def test_one_seed_has_no_interval(interval):
    assert np.isnan(interval(np.array([0.3]))).all()
    assert np.isnan(standard_error(np.array([0.3])))
    assert np.shape(interval(np.zeros((5, 1)))[0]) == (5,)


@pytest.mark.parametrize("num_seeds", [3, 6, 8, 12])
@pytest.mark.parametrize("truth", [0.0, -0.024])
def test_t_intervals_cover_the_truth_in_95_of_100_studies(num_seeds, truth):
    drawn = np.random.default_rng(num_seeds).normal(truth, 0.011, size=(STUDIES, num_seeds))
    assert 0.93 <= coverage(*t_interval(drawn), truth) <= 0.97


def test_pairing_by_seed_covers_the_truth_whatever_a_seed_adds_to_both_arms():
    rng = np.random.default_rng(5)
    seed = rng.normal(0, 0.2, size=(STUDIES, 8))  # twenty times what an arm adds
    baseline, arm = (np.exp(0.7 + seed + rng.normal(mean, 0.008, size=seed.shape)) for mean in (0.0, -0.02))
    ratios = log_ratios(arm, baseline)
    assert 0.93 <= coverage(*t_interval(ratios), -0.02) <= 0.97
    assert np.mean(np.abs(ratios)) < 0.05


def test_t_intervals_bear_differences_that_are_not_normal():
    rng = np.random.default_rng(7)
    heavy = rng.standard_t(5, size=(STUDIES, 8))
    assert 0.93 <= coverage(*t_interval(heavy), 0.0) <= 0.97


def test_the_bootstrap_is_told_to_cover_too_little_over_few_seeds():
    drawn = np.random.default_rng(9).standard_normal((1000, 8))
    measured = coverage(*bootstrap_interval(drawn, resamples=500), 0.0)
    assert bootstrap_coverage(8) == pytest.approx(measured, abs=0.03)
    assert bootstrap_coverage(4) < bootstrap_coverage(8) < 0.93
