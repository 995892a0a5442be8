"""Writes `cli.md`, the help of every verb: `python docs/cli_page.py`. A test holds the page to the commands."""

import contextlib
import io
import os
import re
from pathlib import Path

from grr_coca.cli import VERBS, main

PAGE = Path(__file__).parent / "cli.md"
COLUMNS = "90"
ACTIONS = {"data": ("check", "stats", "convert"), "study": ("run", "status", "report")}
"""Verbs whose first word says what to do, and has a help of its own."""

HEAD = """\
<!-- Written by `python docs/cli_page.py`. -->
# Commands

```
grr-coca VERB --help              # the options of a command, as below
python -m grr_coca VERB --help    # the same, where the command is not on the path
```

| exit code | meaning |
|---|---|
| 0 | done; files that could not be read are listed |
| 1 | a command that works through many files could read none of them |
| 2 | wrong use, or something that cannot be done, such as writing to a full disk |
| 128 + number of the signal | a signal stopped a run; it is saved |

An option without a default is off, or is chosen as its text says.
"""

SAME_FOR_ALL = re.compile(
    r"^ +-h, --help +show this help message and exit\n|^ -+\n|\s*\(default:\s+(?:None|False)?\)", re.MULTILINE
)
"""Rules, the option --help, and defaults that say nothing: the page leaves them out."""

EMPTY_SECTION = re.compile(r"^ options\n\n", re.MULTILINE)


def help_of(*words: str) -> str:
    """What `grr-coca WORDS --help` prints, without what is the same for all commands."""
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
    said = SAME_FOR_ALL.sub("", "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n")
    return EMPTY_SECTION.sub("", said).rstrip()


def page() -> str:
    """The whole page."""
    parts = [HEAD, f"```text\n{help_of()}\n```\n"]
    for verb in VERBS:
        parts.append(f"## {verb}\n\n```text\n{help_of(*verb.split())}\n```\n")
        parts += [f"### {verb} {action}\n\n```text\n{help_of(verb, action)}\n```\n" for action in ACTIONS.get(verb, ())]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
