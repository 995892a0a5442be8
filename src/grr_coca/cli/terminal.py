"""Progress bars on a terminal."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bars:
    """One bar for each job on standard error. `display` is the context in which they are shown."""

    def __init__(self, totals: dict[str, int]) -> None:
        width = max(map(len, totals))
        columns = (TextColumn(f"{{task.fields[label]:<{width}}}"), BarColumn(), TaskProgressColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.display = Progress(*columns, *times, console=Console(stderr=True))
        self._tasks = {name: self.display.add_task("", total=total, label=name) for name, total in totals.items()}

    def update(self, name: str, done: int, description: str) -> None:
        """Report that `done` steps of the job `name` are finished."""
        self.display.update(self._tasks[name], completed=done, description=description)
