"""The page that tells how to add a part is followed to the letter, on a copy of the code."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from followed_page import follow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-a-part.md"


@pytest.mark.ci
def test_part_is_added_by_following_the_page(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (tmp_path / "tests" / "core" / "model").mkdir(parents=True)
    shutil.copytree(ROOT / "tests" / "shared", tmp_path / "tests" / "shared")
    for name in ("conftest.py", "core/model/test_presets.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    touched = follow(PAGE, tmp_path)
    assert [path for path in touched if path.startswith("src")] == [
        "src/grr_coca/model/sine.py",
        "src/grr_coca/model/config.py",
        "src/grr_coca/model/build.py",
        "src/grr_coca/model/presets.py",
    ]
    named = ["-k", "test_sine or parts_of_their_names or every_choice"]
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "-o", f"pythonpath={tmp_path / 'tests' / 'shared'}"]
    command = [sys.executable, "-m", "pytest", *options, *named, "tests"]
    environment = {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 passed" in done.stdout
