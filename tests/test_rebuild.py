"""The corpora can be rebuilt from the registry packages, byte for byte."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def built(*arguments: str, **environment: str) -> str:
    """What a builder prints. It says so if the corpus is not to the byte the published one."""
    command = [sys.executable, "scripts/build_datasets", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


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
def test_the_scenes_are_drawn_to_the_byte(tmp_path):
    found = built("scenes", "--out", str(tmp_path / "scenes"))
    assert found == f"{tmp_path / 'scenes'}: train 15,360, val 400, test 800\n"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_icons_are_fetched_and_built_to_the_byte(tmp_path):
    found = built("icons", XDG_CACHE_HOME=str(tmp_path))
    assert found.startswith(f"{tmp_path / 'grr-coca' / 'icons'}: train ")
    assert "not to the byte" not in found
