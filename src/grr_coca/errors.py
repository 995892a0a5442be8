"""Errors that a person can act on."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input or wrong use. The message names the file, key or value, and the way out.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """


class DivergedError(UserError):
    """Training came to numbers that are none, and gave up."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """A run was asked to stop by a signal, and everything is saved. `number` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)  # the arguments it is built from again in another process
        self.number = number
        self._message = message

    def __str__(self) -> str:
        return self._message


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is meant: `did you mean 'x'?`, or list them all when none is near."""
    valid = sorted(valid)
    # No cutoff: a key that shares little with any other still deserves a best guess, and the list.
    guess = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if guess:
        return f"did you mean '{guess[0]}'?"
    return "valid names: " + ", ".join(valid)
