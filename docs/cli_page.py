"""Writes `cli.md`, the help of every command: `python docs/cli_page.py`. A test holds the page to the commands."""

import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from textwrap import fill

from grr_coca.cli import all_commands, main

PAGE = Path(__file__).parent / "cli.md"
COLUMNS = "90"
ACTIONS = {"data": ("check", "stats", "convert", "features", "index"), "study": ("run", "status", "report")}
"""Commands whose first word says what to do, and has a help of its own."""

HEAD = """\
<!-- Written by `python docs/cli_page.py`. -->
# Commands

```
grr-coca COMMAND --help              # all options of a command
python -m grr_coca COMMAND --help    # the same, if the command is not on the PATH
```

| exit code | meaning |
|---|---|
| 0 | success; unreadable files are listed |
| 1 | a command that processes files could read none of them, or `lint` or `match --check` found something |
| 2 | invalid arguments, or an operation that is impossible, such as writing to a full disk |
| 128 + number of the signal | a signal stopped the run, which was saved |

An option without a default is off, unless its description states otherwise.
"""

SAME_FOR_ALL = re.compile(
    r"^ +-h, --help +show this help message and exit\n|^ -+\n|\s*\(default:\s+(?:None|False)?\)", re.MULTILINE
)
"""Rules, the option --help, and defaults that say nothing: the page leaves them out."""

EMPTY_SECTION = re.compile(r"^ (?:options|positional arguments)\n(?=\n|\Z)", re.MULTILINE)
ITEM = re.compile(r"^  (?P<name>\S+(?: \S+)*)(?:  +|\n {3,})(?P<text>.*\n(?: {3,}.*\n)*)", re.MULTILINE)
"""An argument or option, with its text."""
SHARED_BY = 3
"""What so many commands explain in the same words is explained once."""
DESCRIPTION = re.compile(r"(?<=\n)\n.+\n(?=\n)")
INDENT = {"initial_indent": 6 * " ", "subsequent_indent": 6 * " ", "break_on_hyphens": False}


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
    return SAME_FOR_ALL.sub("", "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n")


def words_of(item: re.Match[str]) -> tuple[str, str]:
    """The name of an argument or option, and its text on one line."""
    return item["name"], " ".join(item["text"].split())


def shared_items(helps: Iterable[str]) -> list[tuple[str, str]]:
    """The arguments and options that several commands explain in the same words."""
    counts = Counter(words_of(item) for said in helps for item in ITEM.finditer(said))
    return [words for words, count in counts.items() if count >= SHARED_BY]


def without(shared: Collection[tuple[str, str]], said: str) -> str:
    """The help of a command, with only the names of what is explained elsewhere."""
    names = []

    def cut(item: re.Match[str]) -> str:
        if words_of(item) not in shared:
            return item[0]
        names.append(re.sub(r"(--?[\w-]+) [^-,\s][^,\s]*", r"\1", item["name"]))
        return ""

    said = re.sub(r"\n{3,}", "\n\n", EMPTY_SECTION.sub("", ITEM.sub(cut, said))).rstrip()
    return f"{said}\n\n  see above: {'; '.join(names)}" if names else said


def page() -> str:
    """The whole page."""
    helps = {
        f"{verb} {action}".rstrip(): help_of(*verb.split(), *action.split())
        for verb in all_commands()
        for action in ACTIONS.get(verb, ("",))
    }
    shared = shared_items(helps.values())
    explained = (f"  {name}\n{fill(text, int(COLUMNS), **INDENT)}\n" for name, text in shared)
    parts = [HEAD, block(help_of()), "## What several commands take\n", block("".join(explained))]
    for verb, said in helps.items():
        in_list = verb in all_commands()  # which says what it does
        parts += [f"## {verb}\n", block(without(shared, DESCRIPTION.sub("", said, count=1) if in_list else said))]
    return "\n".join(parts)


def block(text: str) -> str:
    """A block of text as it stands."""
    return f"```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
