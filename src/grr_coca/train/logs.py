"""The log of a run: JSON lines for programs, TensorBoard for eyes."""

import json
import time
from pathlib import Path
from types import TracebackType

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class MetricLog:
    """Writes `metrics.jsonl` and `tensorboard/` in a run folder."""

    def __init__(self, folder: Path) -> None:
        self._lines = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Log the metrics of a split after `step` steps."""
        self._lines.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
        self._board.close()


class Window:
    """The metrics of some steps, to be logged as one line: their means, and the pace of the steps."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._rows: list[dict[str, Tensor | float]] = []
        self._began = time.monotonic()

    def add(self, metrics: dict[str, Tensor | float]) -> None:
        """Keep the metrics of one step, on the device where they are: reading them would wait for it."""
        self._rows.append(metrics)

    def close(self) -> dict[str, float]:
        """The means, and a new window."""
        means = {name: sum(float(row[name]) for row in self._rows) / len(self._rows) for name in self._rows[0]}
        now = time.monotonic()
        means["pairs_per_second"] = len(self._rows) * self._batch_size / (now - self._began)
        self._rows, self._began = [], now
        return means


def read_metrics(folder: Path, split: str) -> list[dict[str, float]]:
    """The lines of one split of a run's log, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]
