"""The licence of everything that the wheel bundles beside our code is stated: in NOTICE, or on the card of a model."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "grr_coca"
NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")
OURS = (".py", ".js", ".css", ".html", ".j2", ".typed", ".svg")
"""Suffixes of what we wrote, under the licence of the package."""
WEIGHTS = SRC / "model" / "weights"


def bundled() -> list[Path]:
    files = [path for path in SRC.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in files if path.suffix not in OURS and not path.is_relative_to(WEIGHTS)]


def test_a_file_of_others_is_named_in_the_notice() -> None:
    assert [path.name for path in bundled() if path.relative_to(ROOT).as_posix() not in NOTICE] == []


def test_a_model_states_its_licence_and_that_of_its_data() -> None:
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(WEIGHTS.glob("*/card.json"))]
    assert len(cards) == len([path for path in WEIGHTS.iterdir() if path.is_dir()])
    for card in cards:
        assert card["licence"].startswith("weights Apache-2.0; ")
