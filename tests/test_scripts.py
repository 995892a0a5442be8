"""How scripts and benchmarks end where something that they read is missing, and scripts without a test of their own."""

import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "python scripts/build_datasets icons"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("scripts/everyday_queries.py icons", BUILD),
        ("scripts/icon_pictures.py icons out", BUILD),
        ("scripts/fit_confidence.py icons", BUILD),
        ("scripts/fit_confidence.py pictograms --photographs nowhere", "nowhere/budgie-backgrounds/"),
        ("scripts/fit_photographs.py picto", "picto: no model of this name ships; did you mean 'pictograms'?"),
        ("scripts/ship.py nowhere icons", "nowhere: no such folder"),
        ("benchmarks/search_relevance.py --out . --fit", BUILD),
        ("benchmarks/icons.py --out . --beside nowhere", "nowhere"),
    ],
)
def test_missing_inputs_report_one_line(monkeypatch, tmp_path, capsys, command, message):
    script, *arguments = command.split()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)  # of this process
    monkeypatch.syspath_prepend((ROOT / script).parent)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    output = capsys.readouterr().err
    assert end.value.code == 2
    assert output.splitlines()[-1].startswith("error: ")
    assert message in output
