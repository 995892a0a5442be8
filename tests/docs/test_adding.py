"""The page on adding a command, an endpoint and a field is followed to the letter, on a copy of the code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from followed_page import follow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding.md"
OUR_TESTS = ("conftest.py", "cli/test_flags.py", "cli/test_startup.py")


@pytest.mark.ci
def test_page_adds_a_command_an_endpoint_and_a_field(tmp_path):
    weights = "model/weights"
    package = tmp_path / "src" / "grr_coca"
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (package / weights).symlink_to(ROOT / "src" / "grr_coca" / weights)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    ours = (ROOT / "tests" / "shared").glob("*.py")
    for path in (*ours, *(ROOT / "tests" / name for name in OUR_TESTS)):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)

    touched = follow(PAGE, tmp_path)
    assert [path.removeprefix("src/") for path in touched if path.startswith("src")] == [
        "grr_coca/cli/similarity.py",
        "grr_coca/cli/__init__.py",
        "grr_coca_serve/endpoints/similarity.py",
        "grr_coca_search/fields.py",
        "grr_coca_search/photo.py",
    ]
    named = ["-k", "similarity or explained_in_the_help or iso or not_there_is_named or guitar"]
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command = [sys.executable, "-m", "pytest", *options, *named, "tests"]
    # Not by the option `pythonpath`: the plug-in that conftest.py names is imported before pytest reads that.
    places = os.pathsep.join(str(tmp_path / place) for place in ("src", "tests/shared"))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
