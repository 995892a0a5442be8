"""Progress of long work, with the time that is left: bars on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0


class JobProgress(Protocol):
    """Is told how far each of some named jobs is."""

    def update(self, name: str, done: int, description: str) -> None:
        """Tell that `done` steps of the job `name` are done."""
        ...


class ProgressLines:
    """A line of plain text now and then, for logs and pipes; no control codes."""

    def __init__(self, totals: dict[str, int]) -> None:
        self._totals = totals
        self._spoke = time.monotonic()
        self._first: dict[str, tuple[float, int]] = {}

    def update(self, name: str, done: int, description: str) -> None:
        """Tell that `done` steps of the job `name` are done."""
        now = time.monotonic()
        began, first = self._first.setdefault(name, (now, done))  # a run that was resumed did not begin at 0
        if now - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = now
            total = self._totals[name]
            left = (now - began) / max(done - first, 1) * (total - done)
            print(f"{name}: {done / total:.0%}, about {left / 60:.1f} min left  {description}", file=sys.stderr)


@contextmanager
def bars(totals: dict[str, int]) -> Iterator[JobProgress]:
    """Progress on standard error until the context ends.

    Args:
        totals: the number of steps of each job, by its name.
    """
    if not sys.stderr.isatty():
        yield ProgressLines(totals)
        return
    from grr_coca.cli.output.terminal import Bars  # late: rich takes time that pipes need not wait for

    shown = Bars(totals)
    with shown.display:
        yield shown
