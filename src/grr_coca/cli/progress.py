"""Progress of long work, with the time that is left: bars on a terminal, otherwise an occasional line."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0


class JobProgress(Protocol):
    """Shows the progress of one or more named jobs."""

    def update(self, name: str, done: int, description: str) -> None:
        """Report that `done` steps of the job `name` are finished."""
        ...


class ProgressLines:
    """Occasional lines of plain text without control codes, for logs and pipes."""

    def __init__(self, totals: dict[str, int]) -> None:
        self._totals = totals
        self._spoke = time.monotonic()
        self._first: dict[str, tuple[float, int]] = {}

    def update(self, name: str, done: int, description: str) -> None:
        """Report that `done` steps of the job `name` are finished."""
        now = time.monotonic()
        began, first = self._first.setdefault(name, (now, done))  # a resumed run did not begin at 0
        if now - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = now
            total = self._totals[name]
            left = (now - began) / max(done - first, 1) * (total - done)
            print(f"{name}: {done / total:.0%}, about {left / 60:.1f} min left  {description}", file=sys.stderr)


@contextmanager
def bars(totals: dict[str, int]) -> Iterator[JobProgress]:
    """Show progress on standard error within the context.

    Args:
        totals: the number of steps of each job, by its name.
    """
    if not sys.stderr.isatty():
        yield ProgressLines(totals)
        return
    from grr_coca.cli.terminal import Bars  # late: importing rich takes time, and only terminals need it

    shown = Bars(totals)
    with shown.display:
        yield shown
