"""Gives the changelog's heading `Unreleased` the version and today's date, in a commit: the first step of a release.

A changelog whose first heading has the version already stays as it is, so a release can be tried again.
"""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)


def dated(changelog: str, citation: str, version: str, day: str) -> tuple[str, str]:
    """Return the texts of CHANGELOG.md and CITATION.cff for a release on a day."""
    heading = "## Unreleased\n"
    if heading not in changelog:
        return changelog, citation
    citation = re.sub(r"(?m)^version: .*$", f"version: {version}", citation)
    citation = re.sub(r"(?m)^date-released: .*$", f"date-released: {day}", citation)
    return changelog.replace(heading, f"## {version} - {day}\n", 1), citation


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> str | None:
    """Returns what keeps it from being done; None if it is done."""
    if changed := _git("status", "--porcelain"):
        return f"commit these first:\n{changed}"
    version = VERSION.findall((ROOT / "src" / "grr_coca" / "__init__.py").read_text(encoding="utf-8"))[0]
    files = ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"
    before = tuple(file.read_text(encoding="utf-8") for file in files)
    after = dated(before[0], before[1], version, f"{datetime.now(UTC):%Y-%m-%d}")
    if after != before:
        for file, text in zip(files, after, strict=True):
            file.write_text(text, encoding="utf-8", newline="\n")
        _git("commit", "--quiet", "--message", f"Version {version}", *map(str, files))
        print(f"committed: the changelog of version {version} has a date")
    return None


if __name__ == "__main__":
    if wrong := main():
        sys.exit(f"error: {wrong}")
