"""Results on standard output: text for people, JSON lines for programs."""

import json
import os
import signal
import sys
from collections.abc import Mapping


def say(line: str) -> None:
    """Print a line; bytes of a file name that are not UTF-8 come out as they are.

    Raises:
        SystemExit: whoever reads it has seen enough, as in `… | head`.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(f"{line}\n".encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush at exit fails once more
        raise SystemExit(128 + signal.SIGPIPE) from error


def to_json(record: Mapping[str, object]) -> str:
    """A record as one line of JSON, in UTF-8 where that can hold it, else escaped."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(record)  # a file name that is not UTF-8: Python's `os.fsencode` gives it back
    return line
