"""Tests of no difference: exact on small cases, and rarely wrong on simulated studies without any difference."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from grr_coca.study.statistics import holm, sign_flip_p, t_test_p

STUDIES = 2000
LEVEL = 0.05


def simulated(truths: list[float], num_seeds: int = 8) -> np.ndarray:
    """Log ratios of studies × endpoints × seeds; endpoints hang together as the CoCa loss does with its two parts."""
    rng = np.random.default_rng(11)
    shared = rng.normal(0, 0.01, size=(STUDIES, 1, num_seeds))
    own = rng.normal(0, 0.01, size=(STUDIES, len(truths), num_seeds))
    return np.array(truths)[None, :, None] + shared + own


def test_the_sign_flip_test_goes_through_all_patterns():
    values = np.array([0.3, -0.1, 0.4, 0.2, 0.5])
    flipped = [abs(np.mean(values * signs)) for signs in product((1, -1), repeat=5)]
    assert sign_flip_p(values) == pytest.approx(np.mean(np.array(flipped) >= abs(values.mean()) - 1e-12))


@pytest.mark.parametrize(("num_seeds", "smallest"), [(1, 1.0), (2, 0.5), (6, 2 / 64), (8, 2 / 256)])
def test_seeds_that_all_agree_give_the_smallest_p(num_seeds, smallest):
    values = -np.arange(1.0, num_seeds + 1)
    assert sign_flip_p(values) == pytest.approx(smallest)
    assert sign_flip_p(np.stack([values, -values])) == pytest.approx([smallest, smallest])


def test_without_any_difference_p_is_one():
    assert sign_flip_p(np.zeros(8)) == 1.0
    assert t_test_p(np.zeros(8)) == 1.0
    assert np.isnan(t_test_p(np.zeros(1)))


def test_eight_seeds_pass_holm_over_six_endpoints_and_six_seeds_do_not():
    for num_seeds, passes in ((8, True), (6, False)):
        p_values = sign_flip_p(np.tile(-np.arange(1.0, num_seeds + 1), (6, 1)))
        assert (holm(p_values)[0] <= LEVEL) is np.bool_(passes)


def test_the_t_test_is_that_of_scipy():
    values = np.random.default_rng(1).normal(0.5, 1.0, size=(20, 7))
    assert t_test_p(values) == pytest.approx(stats.ttest_1samp(values, 0, axis=-1).pvalue)
    assert np.isnan(t_test_p(np.array([1.0])))


def test_holm_on_a_worked_example():
    # Holm's own steps: 0.01 · 4, 0.02 · 3, 0.03 · 2, 0.04 · 1, and none below the one before.
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([0.004, np.nan]))[0] == pytest.approx(0.008)


@pytest.mark.parametrize("test", [sign_flip_p, t_test_p])
@pytest.mark.parametrize("truths", [[0.0] * 6, [0.0] * 3 + [-0.05] * 3], ids=["none differs", "half differ"])
def test_false_findings_are_rare_among_all_endpoints_together(test, truths):
    found = holm(test(simulated(truths))) <= LEVEL
    is_true = np.array(truths) == 0
    assert np.mean(found[:, is_true].any(axis=1)) <= 0.065
    if not is_true.all():
        assert np.mean(found[:, ~is_true]) > 0.5, "and a large difference is found"


def test_without_correction_false_findings_would_be_seen():
    assert np.mean((sign_flip_p(simulated([0.0] * 6)) <= LEVEL).any(axis=1)) > 0.1
