"""Progress of long work, with the remaining time: bars on a terminal, otherwise an occasional line."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0


class JobProgress(Protocol):
    """Progress of one or more named jobs."""

    def update(self, name: str, done: int, description: str) -> None:
        """Report that `done` steps of the job `name` are finished."""
        ...


@contextmanager
def bars(totals: dict[str, int]) -> Iterator[JobProgress]:
    """Show the progress of jobs on standard error while the context is open.

    Args:
        totals: the number of steps of each job, by its name.
    """
    if not sys.stderr.isatty():
        yield _Lines(totals)
        return
    shown = _Bars(totals)
    with shown.display:
        yield shown


class LateProgress(Protocol):
    """Progress of a job whose total is not known at its start."""

    def __call__(self, done: int, total: int, failed: int = 0) -> None:
        """Report the number of finished steps, of all steps, and of failed steps."""
        ...


@contextmanager
def late_bar(name: str) -> Iterator[LateProgress]:
    """Show the progress of one job whose total becomes known with the first report, while the context is open."""
    with ExitStack() as stack:
        shown: JobProgress | None = None

        def on_progress(done: int, total: int, failed: int = 0) -> None:
            nonlocal shown
            shown = shown or stack.enter_context(bars({name: total}))
            shown.update(name, done, f"{failed} failed" if failed else "")

        yield on_progress


class _Lines:
    """Progress as occasional lines of plain text without control codes, for logs and pipes."""

    def __init__(self, totals: dict[str, int]) -> None:
        self._totals = totals
        self._last_line = time.monotonic()
        self._first: dict[str, tuple[float, int]] = {}

    def update(self, name: str, done: int, description: str) -> None:
        now = time.monotonic()
        began, first = self._first.setdefault(name, (now, done))  # a resumed job does not begin at 0
        if now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            total = self._totals[name]
            left = "" if done == first else _duration((now - began) / (done - first) * (total - done))
            print(f"{name}: {done / total:.0%}{left}  {description}", file=sys.stderr)


def _duration(seconds: float) -> str:
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


class _Bars:
    """Progress as one bar per job on a terminal. `display` is the context that shows the bars."""

    def __init__(self, totals: dict[str, int]) -> None:
        # Lazy import, because importing rich is slow and only terminals need it.
        from rich import progress as parts
        from rich.console import Console

        width = max(map(len, totals))
        columns = (parts.TextColumn(f"{{task.fields[label]:<{width}}}"), parts.BarColumn(), parts.TaskProgressColumn())
        times = (parts.TimeElapsedColumn(), parts.TextColumn("left"), parts.TimeRemainingColumn())
        description = parts.TextColumn("{task.description}")
        self.display = parts.Progress(*columns, *times, description, console=Console(stderr=True))
        self._tasks = {name: self.display.add_task("", total=total, label=name) for name, total in totals.items()}

    def update(self, name: str, done: int, description: str) -> None:
        self.display.update(self._tasks[name], completed=done, description=description)
