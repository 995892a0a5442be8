"""Progress of long work, with the time that is left: bars on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


class Bars:
    """One bar per name, each with a total number of steps."""

    def __init__(self, totals: dict[str, int]) -> None:
        self.console = Console(stderr=True)
        width = max(map(len, totals))
        columns = (TextColumn(f"{{task.fields[label]:<{width}}}"), BarColumn(), TaskProgressColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.progress = Progress(*columns, *times, console=self.console, disable=not self.console.is_terminal)
        self._tasks = {name: self.progress.add_task("", total=total, label=name) for name, total in totals.items()}
        self._totals = totals
        self._spoke = time.monotonic()
        self._first: dict[str, tuple[float, int]] = {}

    def update(self, name: str, done: int, description: str) -> None:
        """Tell that `done` steps of `name` are done."""
        self.progress.update(self._tasks[name], completed=done, description=description)
        now = time.monotonic()
        began, first = self._first.setdefault(name, (now, done))  # a run that was resumed did not begin at 0
        if not self.console.is_terminal and now - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = now
            total = self._totals[name]
            left = (now - began) / max(done - first, 1) * (total - done)
            print(f"{name}: {done / total:.0%}, about {left / 60:.1f} min left  {description}", file=sys.stderr)


@contextmanager
def bars(totals: dict[str, int]) -> Iterator[Bars]:
    """Bars that are taken down at the end."""
    shown = Bars(totals)
    with shown.progress:
        yield shown
