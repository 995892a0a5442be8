"""The steps of `action.yml`, as a runner of GitHub executes them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
TRASH = '<path d="M4 7h16M10 11v6M14 11v6M5 7l1 12h12l1-12M9 7V4h6v3" fill="none" stroke="black" stroke-width="2"/>'
HEART = '<path d="M12 20L4 12a5 5 0 1 1 8-6a5 5 0 1 1 8 6z" fill="none" stroke="black" stroke-width="2"/>'

pytestmark = [pytest.mark.ci, pytest.mark.skipif(shutil.which("bash") is None, reason="steps run in bash")]


@pytest.fixture
def repository(tmp_path):
    """A folder of two icons, one of them with a wrong name, and two maps of them to another folder."""
    for folder, names in {"icons": ("trash", "shopping-cart"), "new": ("bin", "heart")}.items():
        (tmp_path / folder).mkdir()
        for name, body in zip(names, (TRASH, HEART), strict=True):
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">{body}</svg>'
            (tmp_path / folder / f"{name}.svg").write_text(svg)
    (tmp_path / "right.csv").write_text("icon,match\ntrash,bin\n")
    (tmp_path / "wrong.csv").write_text("icon,match\ntrash,basket\n")
    return tmp_path


def run_steps(folder: Path, **inputs: str) -> list[int]:
    """The exit codes of the steps that these inputs switch on, without the installation."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    values = {name: inputs.get(name, about["default"]) for name, about in action["inputs"].items()}
    codes = []
    for step in action["runs"]["steps"]:
        condition = re.fullmatch(r"\$\{\{ inputs\.(\w+) != '' \}\}", step.get("if", ""))
        if condition is None or not values[condition[1]]:
            continue
        assert step["shell"] == "bash"
        given = {
            name: values[re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", text)[1]] for name, text in step["env"].items()
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        assert given.keys() == step["env"].keys()
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PATH": path, **given}
        codes.append(subprocess.run(command, cwd=folder, env=environment, check=False).returncode)
    return codes


def test_lint_fails_and_writes_its_findings(repository):
    assert run_steps(repository) == []
    assert run_steps(repository, lint="icons new", sarif="found.sarif") == [1]
    [result] = json.loads((repository / "found.sarif").read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "icons/shopping-cart.svg"
    assert run_steps(repository, lint="new") == [0]


def test_map_is_checked(repository):
    assert run_steps(repository, match="icons new --check right.csv") == [0]
    assert run_steps(repository, match="icons new --check wrong.csv") == [1]
