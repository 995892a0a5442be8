"""Writes `cli.md`, the help of every verb: `python docs/cli_page.py`. A test holds the page to the commands."""

import contextlib
import io
import os
from pathlib import Path

from grr_coca.cli import VERBS, main

PAGE = Path(__file__).parent / "cli.md"
COLUMNS = "90"
ACTIONS = {"data": ("check", "stats", "convert"), "study": ("run", "status", "report")}
"""Verbs whose first word says what to do, and has a help of its own."""

HEAD = """\
<!-- Written by `python docs/cli_page.py`. -->
# Commands

Each command is `grr-coca VERB …`, or `python -m grr_coca VERB …`. The exit code is 0, or 2 for wrong use and what
cannot be done, such as writing to a full disk. A command
that works through many files gives 1 if it could read none of them. A run that a signal stopped is saved and gives 128
plus the number of the signal.
"""


def help_of(*words: str) -> str:
    """What `grr-coca WORDS --help` prints."""
    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def page() -> str:
    """The whole page."""
    parts = [HEAD, f"```text\n{help_of()}\n```\n"]
    for verb in VERBS:
        parts.append(f"## {verb}\n\n```text\n{help_of(*verb.split())}\n```\n")
        parts += [f"### {verb} {action}\n\n```text\n{help_of(verb, action)}\n```\n" for action in ACTIONS.get(verb, ())]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
