"""Checks what a release says of itself: `python scripts/check_release.py [TAG]`, after `make dist`.

The version is that of the tag and of the files in `dist/`, the changelog begins with it and a date, and nothing in the
tree differs from the last commit.
"""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
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
    return _wrong_in_changelog(version) or _uncommitted()


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
