"""Errors that a person can act on."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input or wrong use. The message names the file, key or value, and what to do about it.

    The command line prints only the message, without a traceback, and exits with code 2.
    """


class DivergedError(UserError):
    """Training came to numbers that are none, and gave up."""


class DiskError(UserError):
    """A disk that is full or cannot be written to; names the place. Who knows the way on adds it."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """A run has stopped because a signal asked for it, and everything is saved. `number`: of the signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)  # another process builds the exception again from these arguments
        self.number = number
        self._message = message

    def __str__(self) -> str:
        return self._message


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint at the valid name that was probably meant, `did you mean 'x'?`, or at all of them if none is similar."""
    valid = sorted(valid)
    guess = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if guess:
        return f"did you mean '{guess[0]}'?"
    return "valid names: " + ", ".join(valid)
