"""Checks what a release says of itself: `python scripts/check_release.py [TAG]`, after `make dist`.

The version is that of the tag and of the files in `dist/`, the changelog begins with it and a date, the wheel states
the licence of everything in it, and nothing in the tree differs from the last commit.
"""

import json
import re
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = (".py", ".js", ".css", ".html", ".md", ".typed", ".svg")
"""Endings of what we wrote, under the licence of the package."""
HEADING = re.compile(r"^## (?P<version>\S+)(?: - (?P<date>\S+))?$", re.MULTILINE)


def main(tag: str | None) -> str | None:
    """Returns what is wrong; None if nothing is."""
    source = (ROOT / "src" / "grr_coca" / "__init__.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)[0]
    if tag is not None and tag != f"v{version}":
        return f"the tag is {tag}, and the version in src/grr_coca/__init__.py is {version}"
    built = sorted(path.name for path in (ROOT / "dist").iterdir())
    expected = [f"grr_coca-{version}-py3-none-any.whl", f"grr_coca-{version}.tar.gz"]
    if built != expected:
        return f"dist/ holds {', '.join(built)}; expected {', '.join(expected)}"
    unstated = without_licence(ROOT / "dist" / expected[0])
    if unstated:
        return f"the wheel does not state the licence of {', '.join(unstated)}: name them in NOTICE"
    return _wrong_in_changelog(version) or _uncommitted()


def without_licence(wheel: Path) -> list[str]:
    """The files of a wheel whose licence it does not state: neither code of ours, nor in a card, nor in its NOTICE."""
    with zipfile.ZipFile(wheel) as opened:
        texts = {Path(name).name: opened.read(name).decode() for name in opened.namelist() if "/licenses/" in name}
        names = [name for name in opened.namelist() if ".dist-info/" not in name]
        stated = {
            name.rpartition("/")[0]
            for name in names
            if name.endswith("/card.json") and json.loads(opened.read(name)).get("licence")
        }
    if "LICENSE" not in texts or "NOTICE" not in texts:
        return ["the package: LICENSE or NOTICE is missing"]
    others = [name for name in names if not name.endswith(OURS) and name.rpartition("/")[0] not in stated]
    return [name for name in others if f"src/{name}" not in texts["NOTICE"]]


def _wrong_in_changelog(version: str) -> str | None:
    newest = HEADING.search((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if newest is None or newest["version"] != version:
        return f"CHANGELOG.md: its first heading must be '## {version} - {date.today()}'"
    try:
        date.fromisoformat(newest["date"] or "")
    except ValueError:
        return f"CHANGELOG.md: {newest[0]!r} has no date such as {date.today()}"
    return None


def _uncommitted() -> str | None:
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True, text=True)
    return f"not committed:\n{changed.stdout}" if changed.stdout else None


if __name__ == "__main__":
    if wrong := main(*(sys.argv[1:] or [None])):
        sys.exit(f"error: {wrong}")
