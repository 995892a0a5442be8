"""The script that fits what a shipped model knows of its own answers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from grr_coca.model.shipped_models import Figure, shipped_folder, shipped_models

SCRIPT = Path(__file__).parents[1] / "scripts" / "fit_confidence.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec = importlib.util.spec_from_file_location("fit_confidence", SCRIPT)
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found


def test_the_curve_is_the_one_that_the_captions_were_drawn_from(script):
    rng = np.random.default_rng(0)
    values = -rng.exponential(2, 20_000)
    right = (rng.random(20_000) < 1 / (1 + np.exp(-(1.5 * values + 0.5)))).astype(float)
    columns = np.stack([values, np.ones(20_000)], axis=1)
    assert script.logistic(columns, right) == pytest.approx([1.5, 0.5], abs=0.1)
    assert script.logistic(columns, right, ridge=1e9) == pytest.approx([0, 0], abs=1e-3)
    twice = script.logistic(np.repeat(columns, 2, axis=0), np.repeat(right, 2))
    assert script.logistic(columns, right, np.full(20_000, 2.0)) == pytest.approx(twice)


def test_the_calibration_error_is_the_mean_distance_over_bins(script):
    confidence, right = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0])
    assert script.calibration_error(confidence, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert script.calibration_error(np.array([1.0]), np.array([1.0])) == 0


def test_a_share_has_wilsons_interval(script):
    figure = script.share(np.array([1.0] * 9 + [0.0]))
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.9, 0.596, 0.982), abs=1e-3)
    assert script.share(np.ones(38)).high == 1


def test_the_bins_and_the_surest_are_shares_of_right_captions(script):
    figures = script.reliability(np.linspace(0.001, 0.999, 1000), np.arange(1000) >= 500)
    assert figures["30 to 40 %"].value == 0
    assert figures["surest 25 %"].value == 1
    assert figures["surest 50 %"].value == 1
    assert figures["captions"] == Figure(1000, 1000, 1000)


def test_the_section_of_the_card_that_ships_is_made_of_its_figures(script):
    page = (shipped_folder("icons") / "card.md").read_text()
    section = script.confidence_section(shipped_models()["icons"].figures)
    assert "\n".join(["", *section, "", script.NEXT]) in page


def test_the_photographs_are_different_ones(script, tmp_path):
    lists = script._listed(tmp_path)
    assert list(lists) == ["photographs", "photographs, other", "cut-outs"]
    every = [path for paths in lists.values() for path in paths]
    assert len(set(every)) == len(every) == 98 + 211
    assert min(map(len, lists.values())) >= 30
