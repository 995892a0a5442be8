"""What `grr-coca demo` shows before it trains, and after."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from grr_coca_study.commands.demo import _symbol, closing_lines, opening_lines
from grr_coca_study.demo.plan import load_demo

PLAN = Path(__file__).parents[3] / "recipes" / "demo.yaml"


def test_a_demo_opens_with_captions_and_searches():
    lines = list(opening_lines(load_demo(PLAN)))
    assert [line for line in lines if line.startswith("  red heart: ")]
    assert len(lines) == 1 + 6 + 1 + 5


def test_a_drawing_is_shown_as_its_emoji_where_the_terminal_can():
    assert _symbol("emojione-1f1f0-1f1fc") == "\U0001f1f0\U0001f1fc"
    assert _symbol("my-drawing") == "my-drawing"
    assert _symbol("dragon") == "dragon"


@pytest.mark.ci
def test_a_demo_ends_with_a_search_over_its_pictures_and_names_the_commands(grr_coca, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["grr-coca"])
    plan = replace(load_demo(PLAN), showcase="test")
    index, search, *hits, serve = closing_lines(plan, Path("pictograms"), tmp_path)
    assert hits[0].split()[:4] == ["1", hits[0].split()[1], "red", "heart"]
    assert len(hits) == 3
    assert serve.endswith(f"grr-coca serve {tmp_path}/index --open")
    assert re.fullmatch(rf"grr-coca index \S+ --checkpoint pictograms --out {tmp_path}/index", index)
    assert grr_coca(*shlex.split(search)[1:]).out.splitlines() == hits
    assert grr_coca(*shlex.split(index)[1:]).out.count("nothing new") == 1
