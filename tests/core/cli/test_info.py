"""`grr-coca info` and `models`: presets described, and the bundled models listed."""

import json

import pytest

from grr_coca.model.anatomy import count_parameters, flops_per_pair
from grr_coca.model.build import build_without_weights
from grr_coca.model.checkpoint_files import DEFAULT, bundled_models
from grr_coca.model.presets import get_preset

# --- info


@pytest.mark.parametrize("preset", ["baseline_coca", "grr_coca", "grr_coca_plus"])
def test_info_shows_parts_parameters_and_flops_of_a_preset(grr_coca, preset):
    result = grr_coca("info", preset)
    assert result.code == 0, result.err
    rows = {line[:36].strip(): line[36:].strip() for line in result.out.splitlines()}
    model = build_without_weights(get_preset(preset, "tiny"))
    assert result.out.startswith(f"{preset}, size tiny\n")
    assert rows["all parameters"] == f"{count_parameters(model):,}"
    for name, part in model.named_children():
        assert rows[name] == f"{count_parameters(part):,}"
    assert rows["FLOPs per pair, forward, 48 tokens"] == f"{flops_per_pair(get_preset(preset, 'tiny')):,}"


def test_info_of_two_presets_shows_their_differences(grr_coca):
    result = grr_coca("info", "grr_coca", "baseline_coca")
    assert result.code == 0, result.err
    for words in ("grr_coca against baseline_coca", "image_encoder", "all parameters", "FLOPs per pair", "rope_2d"):
        assert words in result.out
    assert "text_decoder." not in result.out


def test_info_counts_shorter_captions(grr_coca):
    flops = [flops_per_pair(get_preset("grr_coca", "tiny"), length) for length in (48, 12)]
    out = grr_coca("info", "grr_coca", "--text-length", 12).out
    for length, count in zip((48, 12), flops, strict=True):
        assert f"FLOPs per pair, forward, {length} tokens" in out
        assert f" {count:,}\n" in out


# --- models


def test_models_are_listed_with_size_data_and_figures(grr_coca):
    result = grr_coca("models")
    assert result.code == 0
    for name, card in bundled_models().items():
        assert name in result.out
        assert f"{card.parameters:,} parameters" in result.out
        assert card.data in result.out
        assert f"test_style: R@1 {card.figures['test_style']['text_to_image/R@1'].value:.1%}" in result.out


def test_json_figures_have_intervals(grr_coca):
    found = json.loads(grr_coca("models", "--json").out)
    figure = found[DEFAULT]["figures"]["test_style"]["exact_captions"]
    assert figure["low"] <= figure["value"] <= figure["high"]
