"""How scripts and benchmarks end where something that they read is missing, and scripts without a test of their own."""

import os
import runpy
import shutil
import subprocess
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


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_page_takes_a_port_and_a_path_with_spaces(tmp_path):
    """A title that says what is searched comes from the name of the index."""
    pictures = tmp_path / "own dir"
    pictures.mkdir()
    program = tmp_path / "grr-coca"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\necho\n')
    program.chmod(0o755)
    made = tmp_path / "venv"
    made.mkdir()
    values = [f"IMAGES={pictures}", "PORT=8123", f"BIN={tmp_path}", f"VENV={made}"]
    page = ["make", "--silent", f"--old-file={made}/.page", "page", *values]
    (made / ".page").touch()
    index, serve = subprocess.run(page, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    made_index = index.split("|")[3]
    assert index == f"index|{pictures}|--out|{made_index}|"
    assert Path(made_index).name == "own dir.index"
    assert serve == f"serve|{made_index}|--port|8123|--open|"
