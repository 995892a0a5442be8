"""Messages on a terminal. Names of files stand in them, and strangers may have chosen these."""

import logging
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def on_one_line(text: str) -> str:
    """A text, such as the name of a file, with escapes for what would end a line or steer the terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable(text: str) -> str:
    """A message of one or more lines, with escapes for what would steer the terminal."""
    return "\n".join(map(on_one_line, text.split("\n")))


def print_warnings() -> None:
    """Let this process print warnings and worse to standard error, unless its caller has decided where they go."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
