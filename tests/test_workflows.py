"""The workflows of .github run nothing but targets of the Makefile, which anybody can run."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TARGETS = set(" ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)).split())


def test_each_step_of_a_workflow_is_a_target_that_is_there():
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
