"""Errors that users can fix, and messages that are safe to print."""

import difflib
import logging
import re
from collections.abc import Iterable

NOTES = logging.getLogger("grr_coca.notes")
"""Logger for choices and delays that users should know about, such as downloads. The command line prints it."""
_MAX_COMPARED = 200
"""Maximum length of an unknown name for comparisons, as untrusted input can have megabytes."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Controls, ends of lines, and marks that turn the direction of what follows."""


class UserError(ValueError):
    """Invalid input or use. The message names the file, key or value, and how to fix it.

    The command line prints only the message, without a traceback, and exits with code 2.
    """


class DivergedError(UserError):
    """Training diverged: the loss or the gradients are not finite."""


class DamagedError(UserError):
    """The content of a file differs from what was written. The message explains how to restore it."""


class DiskError(UserError):
    """A disk is full or cannot be written to. The message names the path; callers append how to recover."""


class Interruption(Exception):  # noqa: N818 (not an error)
    """A signal stopped a run, and everything is saved. `number`: the number of the signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)  # other processes reconstruct the exception from these arguments
        self.number = number
        self._message = message

    def __str__(self) -> str:
        return self._message


def suggest_name(name: str, valid: Iterable[str]) -> str:
    """Return a hint for an unknown name: `did you mean 'x'?` with the most similar valid name, or all valid names."""
    valid = sorted(valid)
    guess = difflib.get_close_matches(name[:_MAX_COMPARED], valid, n=1, cutoff=0.5)
    if guess:
        return f"did you mean '{guess[0]}'?"
    return "valid names: " + ", ".join(valid)


def nearest_multiples(number: int, factor: int) -> str:
    """Return a hint for a number that is not a multiple of a factor: the nearest positive multiples."""
    lower = number // factor * factor
    return f"{lower} and {lower + factor}" if lower > 0 else f"{factor}"


def escape_control_chars(text: str) -> str:
    """Escape line ends and control characters, which untrusted file names can contain."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Escape the control characters of a message of one or more lines; line ends stay."""
    return "\n".join(map(escape_control_chars, text.split("\n")))


def print_warnings() -> None:
    """Print warnings and errors of the log, and `NOTES`, on standard error.

    If the caller has configured logging, its configuration stays.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    NOTES.setLevel(logging.INFO)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
