"""The models that come with the code, listed and used by name."""

import json
from pathlib import Path

import pytest

from grr_coca.cli.demo import _symbol, opening_lines
from grr_coca.registry import DEFAULT, shipped_models
from grr_coca.study.demo.plan import load_demo
from support import real_pairs


@pytest.fixture
def drawing(tmp_path):
    pair = real_pairs(1)[0]
    path = tmp_path / "drawing.webp"
    path.write_bytes(pair.image)
    return path


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


def test_without_a_checkpoint_the_shipped_model_is_used(grr_coca, drawing):
    given, default = (grr_coca("caption", str(drawing), *flags) for flags in (["-c", DEFAULT], []))
    assert default.code == 0
    assert default.out == given.out
    assert default.out.split("\t")[1].strip()


def test_verbs_that_measure_take_a_name(grr_coca):
    split = "datasets/health/test-*.tar"
    data = str(Path(__file__).parents[2] / split)
    said = grr_coca("evaluate", DEFAULT, "--data", data, "--json")
    assert said.code == 0
    assert json.loads(said.out)


def test_a_demo_opens_with_captions_and_searches():
    plan = load_demo(Path(__file__).parents[2] / "recipes" / "demo.yaml")
    lines = list(opening_lines(plan))
    assert [line for line in lines if line.startswith("  red heart: ")]
    assert len(lines) == 1 + 6 + 1 + 5


def test_a_drawing_is_shown_as_its_emoji_where_the_terminal_can():
    assert _symbol("emojione-1f1f0-1f1fc") == "\U0001f1f0\U0001f1fc"
    assert _symbol("my-drawing") == "my-drawing"
    assert _symbol("dragon") == "dragon"
