"""The page that tells how to add a part is followed to the letter, on a copy of the code."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-a-part.md"
STEP = re.compile(r"^`(?P<path>\S+)`:$|^```(?P<kind>python|diff)\n(?P<block>.*?)^```$", re.MULTILINE | re.DOTALL)


def follow(page: str, root: Path) -> list[str]:
    """Do what the blocks of a page say to the files that they stand under; returns these, in order."""
    paths: list[str] = []
    for step in STEP.finditer(page):
        if step["path"]:
            paths.append(step["path"])
        elif step["kind"] == "python":
            assert not (root / paths[-1]).exists(), f"{paths[-1]} is said to be new"
            (root / paths[-1]).write_text(step["block"], encoding="utf-8")
        else:
            path, lines = root / paths[-1], step["block"].splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
            code = path.read_text(encoding="utf-8")
            assert code.count(before) == 1, f"{PAGE.name} changes lines that {paths[-1]} does not have:\n{before}"
            path.write_text(code.replace(before, after), encoding="utf-8")
    return paths


@pytest.mark.ci
def test_a_part_is_added_by_following_the_page(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (tmp_path / "tests" / "model" / "layers").mkdir(parents=True)
    for name in ("conftest.py", "model_configs.py", "shape_check.py", "model/test_presets.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    touched = follow(PAGE.read_text(encoding="utf-8"), tmp_path)
    assert [path for path in touched if path.startswith("src")] == [
        "src/grr_coca/model/layers/sine.py",
        "src/grr_coca/model/config.py",
        "src/grr_coca/model/build.py",
        "src/grr_coca/model/presets.py",
    ]
    named = ["-k", "test_sine or parts_of_their_names or every_choice"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", *named, "tests"]
    environment = {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 passed" in done.stdout
