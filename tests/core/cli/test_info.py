"""`grr-coca info` and `models`: presets described, and the shipped models listed."""

import json

import pytest

from grr_coca.model.checkpoint_files import DEFAULT, shipped_models
from grr_coca.train.forecast import MFU_OF_NARROW

# --- info


@pytest.mark.parametrize("preset", ["baseline_coca", "grr_coca", "grr_coca_plus"])
def test_info_shows_parts_parameters_and_flops_of_a_preset(grr_coca, preset):
    said = grr_coca("info", preset)
    assert said.code == 0, said.err
    for words in (f"{preset}, size tiny", "image_encoder", "blocks × 4", "captioning_pooler", "total", "GFLOP forward"):
        assert words in said.out


def test_info_of_two_presets_shows_what_they_differ_in(grr_coca):
    said = grr_coca("info", "grr_coca", "baseline_coca")
    assert said.code == 0, said.err
    for words in ("grr_coca against baseline_coca", "image_encoder", "all parameters", "FLOPs per pair", "rope_2d"):
        assert words in said.out
    assert "text_decoder." not in said.out


def test_info_of_a_batch_foretells_a_training_step_on_this_machine(grr_coca, monkeypatch):
    monkeypatch.setattr("grr_coca.cli.anatomy.matmul_rate", lambda *_: 100e9)
    said = grr_coca("info", "grr_coca", "--batch", 256, "--text-length", 12)
    assert said.code == 0, said.err
    for words in ("a training step of 256 pairs", "fp32 100 GFLOP/s", "assumed", "fp32, 48 tokens", "bf16, 12 tokens"):
        assert words in said.out
    assert said.out.count("GFLOP forward") == 2
    rows = [line.split() for line in said.out.splitlines() if "images/s" in line]
    assert len(rows) == 4
    flops, seconds, rate = (float(rows[0][i].replace(",", "")) for i in (3, 5, 10))
    assert seconds == pytest.approx(flops / (100 * MFU_OF_NARROW.assumed), rel=0.01)
    assert rate == pytest.approx(256 / seconds, rel=0.01)


# --- models


def test_models_are_listed_with_size_data_and_figures(grr_coca):
    said = grr_coca("models")
    assert said.code == 0
    for name, card in shipped_models().items():
        assert name in said.out
        assert f"{card.parameters:,} parameters" in said.out
        assert card.data in said.out
        assert f"test_style: R@1 {card.figures['test_style']['text_to_image/R@1'].value:.1%}" in said.out


def test_as_json_every_figure_has_its_interval(grr_coca):
    found = json.loads(grr_coca("models", "--json").out)
    figure = found[DEFAULT]["figures"]["test_style"]["exact_captions"]
    assert figure["low"] <= figure["value"] <= figure["high"]
