"""The script that fits what a bundled model knows of its own answers."""

import numpy as np
import pytest

import fit_confidence
from grr_coca.model.checkpoint_files import bundled_folder, bundled_models


def test_fitted_curve_equals_the_curve_of_the_sampled_captions():
    rng = np.random.default_rng(0)
    values = -rng.exponential(2, 20_000)
    right = (rng.random(20_000) < 1 / (1 + np.exp(-(1.5 * values + 0.5)))).astype(float)
    columns = np.stack([values, np.ones(20_000)], axis=1)
    assert fit_confidence.logistic(columns, right) == pytest.approx([1.5, 0.5], abs=0.1)
    assert fit_confidence.logistic(columns, right, ridge=1e9) == pytest.approx([0, 0], abs=1e-3)
    twice = fit_confidence.logistic(np.repeat(columns, 2, axis=0), np.repeat(right, 2))
    assert fit_confidence.logistic(columns, right, np.full(20_000, 2.0)) == pytest.approx(twice)


def test_calibration_error_is_the_mean_distance_over_bins():
    confidence, right = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0])
    assert fit_confidence.calibration_error(confidence, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert fit_confidence.calibration_error(np.array([1.0]), np.array([1.0])) == 0


def test_share_has_wilsons_interval():
    figure = fit_confidence.share(np.array([1.0] * 9 + [0.0]))
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.9, 0.596, 0.982), abs=1e-3)
    assert fit_confidence.share(np.ones(38)).high == 1


def test_bundled_card_section_matches_its_figures():
    page = (bundled_folder("icons") / "card.md").read_text()
    section = fit_confidence.confidence_section(bundled_models()["icons"].figures)
    assert "\n".join(["", *section, "", fit_confidence.NEXT]) in page


def test_photographs_are_distinct(tmp_path):
    lists = fit_confidence._listed(tmp_path)
    assert list(lists) == ["photographs", "photographs, other", "cut-outs"]
    every = [path for paths in lists.values() for path in paths]
    assert len(set(every)) == len(every) == 98 + 211
    assert min(map(len, lists.values())) >= 30
