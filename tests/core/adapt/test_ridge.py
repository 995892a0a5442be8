"""Kernel ridge regression against scikit-learn, and against fitting again without a fold."""

import numpy as np
import pytest

from grr_coca.adapt import ridge
from grr_coca.adapt.ridge import (
    ExactRidge,
    NystroemRidge,
    group_linked,
    group_near_equal,
    links_of,
    make_folds,
    rows_of,
)
from grr_coca.infer.adapted.adaptation import gaussian

WIDTH, PENALTY = 0.4, 0.2


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(3)
    features = random.standard_normal((60, 7)).astype(np.float32)
    targets = (features @ random.standard_normal((7, 4)) + 0.1 * random.standard_normal((60, 4))).astype(np.float32)
    return features, targets, make_folds(np.arange(60) // 2, 5)


def predictions(fitted, features, targets, new):
    return gaussian(new, features[fitted.landmarks], WIDTH) @ fitted.dual(targets)


@pytest.mark.ci
def test_exact_fit_matches_scikit_learn(problem):
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
    features, targets, _ = problem
    reference = kernel_ridge.KernelRidge(kernel="rbf", gamma=WIDTH, alpha=PENALTY).fit(features, targets)
    new = features[:9] + 0.1
    found = predictions(ExactRidge(features, WIDTH, PENALTY), features, targets, new)
    np.testing.assert_allclose(found, reference.predict(new), atol=1e-4)


@pytest.mark.parametrize("kind", ["exact", "nystroem"])
def test_held_out_predictions_equal_a_fit_without_the_fold(problem, kind):
    features, targets, folds = problem
    landmarks = np.arange(0, 60, 2)

    def fitted(rows):
        if kind == "exact":
            return ExactRidge(features[rows], WIDTH, PENALTY)
        return NystroemRidge(features, WIDTH, PENALTY, landmarks)

    found = fitted(np.arange(60)).predict_held_out(targets, folds)
    for rows in rows_of(folds):
        others = np.setdiff1d(np.arange(60), rows)
        if kind == "exact":
            expected = gaussian(features[rows], features[others], WIDTH) @ fitted(others).dual(targets[others])
        else:  # the definition: ridge regression of the others on kernel values with all landmarks
            between = gaussian(features, features[landmarks], WIDTH).astype(np.float64)
            inner = gaussian(features[landmarks], features[landmarks], WIDTH).astype(np.float64)
            system = between[others].T @ between[others] + PENALTY * inner
            expected = between[rows] @ np.linalg.solve(system, between[others].T @ targets[others])
        np.testing.assert_allclose(found[rows], expected, atol=2e-3)


def test_nystroem_with_all_landmarks_equals_the_exact_fit(problem):
    features, targets, folds = problem
    exact = ExactRidge(features, WIDTH, PENALTY)
    every = NystroemRidge(features, WIDTH, PENALTY, np.arange(60))
    new = features[:9] + 0.1
    np.testing.assert_allclose(
        predictions(every, features, targets, new), predictions(exact, features, targets, new), atol=2e-3
    )
    np.testing.assert_allclose(
        every.predict_held_out(targets, folds), exact.predict_held_out(targets, folds), atol=2e-3
    )


def test_halves_give_the_same_fit(problem, monkeypatch):
    features, targets, folds = problem
    whole = ExactRidge(features, WIDTH, PENALTY)
    monkeypatch.setattr(ridge, "_SMALL", 7)
    halves = ExactRidge(features, WIDTH, PENALTY)
    np.testing.assert_allclose(halves.dual(targets), whole.dual(targets), atol=1e-4)
    np.testing.assert_allclose(
        halves.predict_held_out(targets, folds), whole.predict_held_out(targets, folds), atol=1e-4
    )


def test_gaussian_kernel_equals_its_definition():
    random = np.random.default_rng(0)
    first, second = (random.standard_normal((count, 5)).astype(np.float32) for count in (4, 6))
    expected = np.exp(-0.3 * np.square(first[:, None] - second[None]).sum(axis=2))
    np.testing.assert_allclose(gaussian(first, second, 0.3), expected, rtol=1e-5)


def test_groups_share_a_fold_and_folds_are_even():
    groups = np.repeat(np.arange(30), 4)
    folds = make_folds(groups, 5)
    assert all(len(set(folds[groups == group])) == 1 for group in range(30))
    assert np.bincount(folds).tolist() == [24] * 5


def test_joined_groups_connect_through_others():
    groupings = np.array([0, 0, 1, 1, 2, 3]), np.array([5, 6, 6, 7, 8, 8])
    links = [link for groups in groupings for link in links_of(np.arange(6), groups)]
    assert group_linked(6, links).tolist() == [0, 0, 0, 0, 4, 4]


def test_near_equal_needs_both_measures():
    unit = np.eye(4, dtype=np.float32)
    rows = np.stack([unit[0], unit[0], unit[1], unit[1]])
    others = np.stack([unit[0], unit[0], unit[1], unit[2]])
    assert group_near_equal(rows, others, 0.9, 0.9).tolist() == [0, 0, 2, 3]
