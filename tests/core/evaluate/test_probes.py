"""Probes find what is there, and nothing where nothing is."""

import re
import sys

import numpy as np
import pytest

from grr_coca.common.errors import UserError, install_command
from grr_coca.evaluate.tasks import STRENGTHS, linear_probe, split_for_validation


def clusters(count: int, classes: int, seed: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Points around the corners of a simplex."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    return (np.eye(classes, 8)[targets] + spread * rng.normal(size=(count, 8)) / np.sqrt(8)), targets


@pytest.mark.ci  # importing scikit-learn takes seconds
def test_linear_probe_finds_clusters():
    train, targets = clusters(120, 3, seed=0)
    test, expected = clusters(60, 3, seed=1)
    found = linear_probe(train, targets, test)
    assert (found.predicted == expected).mean() > 0.95
    assert found.strength in STRENGTHS


@pytest.mark.ci
def test_linear_probe_finds_nothing_in_noise():
    rng = np.random.default_rng(0)
    found = linear_probe(rng.normal(size=(90, 8)), np.arange(90) % 3, rng.normal(size=(90, 8)))
    assert (found.predicted == np.arange(90) % 3).mean() < 0.6


def test_part_of_every_class_is_kept_for_validation():
    targets = np.repeat([0, 1, 2], [50, 10, 3])
    fit, held_out = split_for_validation(targets, seed=0)
    assert sorted([*fit, *held_out]) == list(range(63))
    assert np.bincount(targets[held_out], minlength=3).tolist() == [10, 2, 0]
    assert not np.array_equal(held_out, split_for_validation(targets, seed=1)[1])


def test_rejects_too_few_training_images():
    with pytest.raises(UserError, match="two classes"):
        linear_probe(np.ones((9, 2)), np.zeros(9), np.ones((2, 2)))
    with pytest.raises(UserError, match="no class has 5"):
        linear_probe(np.ones((4, 2)), np.array([0, 0, 1, 1]), np.ones((2, 2)))


def test_missing_scikit_learn_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=re.escape(install_command("probe"))):
        linear_probe(np.ones((9, 2)), np.arange(9) % 2, np.ones((2, 2)))
