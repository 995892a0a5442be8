"""Results on standard output: text for people, JSON lines for programs."""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def say(line: str) -> None:
    """Print a line. Bytes of a file name that are not UTF-8 are printed unchanged.

    Raises:
        SystemExit: the reader of the output has closed it, as in `… | head`.
    """
    say_raw(line, "\n")


def say_raw(text: str, end: str) -> None:
    """Print a text and its end, as `say` does a line."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(f"{text}{end}".encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails again
        raise SystemExit(128 + signal.SIGPIPE) from error


def to_json(record: Mapping[str, object] | Sequence[Mapping[str, object]]) -> str:
    """A record, or a list of some, as one line of JSON: as text if UTF-8 can encode it, else with escapes."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(record)  # a file name that is not UTF-8; Python's `os.fsencode` restores its bytes
    return line


def called_as() -> list[str]:
    """The words by which this program was called, to tell commands that work here."""
    program = sys.argv[0]
    return [sys.executable, "-m", "grr_coca"] if Path(program).name == "__main__.py" else [program]
