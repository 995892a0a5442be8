"""The script that fits the numbers of matches."""

import json
from pathlib import Path

from grr_coca.model.checkpoint_files import bundled_folder, bundled_models

ROOT = Path(__file__).parents[1]


def test_bundled_card_lists_measurements(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import fit_match

    found = json.loads((ROOT / "benchmarks" / "results" / "match.json").read_text())
    page = (bundled_folder("icons") / "card.md").read_text()
    assert "\n".join(["", *fit_match.match_section(found), "", fit_match.NEXT]) in page
    assert bundled_models()["icons"].figures["matches"] == fit_match.card_figures(found)
