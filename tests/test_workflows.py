"""The workflows of .github run nothing but targets of the Makefile, which anybody can run."""

import re
from pathlib import Path

import yaml

from grr_coca.cli import all_commands
from grr_coca.common.errors import PACKAGES

ROOT = Path(__file__).parents[1]
TARGETS = set(" ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)).split())


def test_each_step_of_a_workflow_is_an_existing_target():
    ran = set()
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            rows = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
            for line in (step["run"] for step in job["steps"] if "run" in step):
                found = re.fullmatch(r'make "?([\w$-]+)"?(?: \w+="?[\w$]+"?)*', line)
                assert found, f"{path.name}: {line}"
                ran |= {found[1].replace("$VERSIONS", row.get("versions", "")) for row in rows}
    assert ran <= TARGETS
    assert {"lint", "check-workflows", "ci", "test-everywhere", "test-oldest", "test-newest", "dist", "docs"} <= ran


def test_action_and_hooks_install_and_run_commands():
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    lines = [*(hook["entry"] for hook in hooks), *(step["run"] for step in action["runs"]["steps"] if "run" in step)]
    found = [one for line in lines for one in re.findall(r"^grr-coca (\w+)", line)]
    assert found == ["lint", "match", "lint", "match"]
    assert set(found) <= set(all_commands())
    assert 'pip install --quiet "$GITHUB_ACTION_PATH[icons]"' in lines
    assert all("uses" not in step or re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in action["runs"]["steps"])
    brought = {re.split("[>=]", line)[0] for hook in hooks for line in hook["additional_dependencies"]}
    assert brought <= set(PACKAGES["icons"].values())
