"""The log of a run: JSON lines for programs, TensorBoard for people."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from grr_coca.errors import DiskError
from grr_coca.evaluate.captioning.caption_split import Captioned
from grr_coca.extras import require_extra
from grr_coca.train.run.progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "metrics.jsonl"

SHOWN_CAPTIONS = 16
"""Number of captions that each validation logs, always of the same images."""


class MetricLog:
    """Appends to `metrics.jsonl` and `tensorboard/` of a run folder. Without a folder, it writes nothing.

    The lines of `metrics.jsonl` hold no times. So a run that was stopped and resumed leaves the same bytes as a run
    that was not. The pace is logged to TensorBoard only.

    Every method raises a DiskError that names the folder if the disk is full or cannot be written to.
    """

    def __init__(self, folder: Path | None, progress: Progress) -> None:
        """Open the log at the progress of the run. Everything that was logged after that is dropped."""
        self._folder = folder
        self._file: BinaryIO | None = None
        self._board: SummaryWriter | None = None
        if folder is not None:
            with self._writing():
                self._file = (folder / LOG_FILE).open("ab")
                self._file.truncate(min(progress.log_bytes, self._file.tell()))
                self._file.seek(0, os.SEEK_END)  # or the size that a checkpoint notes would be that of before
                self._board = _open_board(folder, progress.step)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Log the metrics of a split after `step` steps."""
        self._append({"step": step, "split": split, **metrics})
        self.show(step, split, metrics)

    def event(self, step: int, kind: str, **details: object) -> None:
        """Log an unusual event."""
        self._append({"step": step, "split": "events", "event": kind, **details})

    def show(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Log metrics to TensorBoard only."""
        for name, value in metrics.items():
            if self._board is not None:
                with self._writing():
                    self._board.add_scalar(f"{split}/{name}", value, step)

    def captions(self, step: int, captioned: Captioned) -> None:
        """Log the model's captions of the first few images, beside a reference caption of each."""
        shown = range(min(SHOWN_CAPTIONS, len(captioned.names)))
        rows = [(captioned.names[i], captioned.hypotheses[i], captioned.references[i][0]) for i in shown]
        self._append({"step": step, "split": "captions", "captions": rows})
        if self._board is not None:
            lines = [f"| {Path(name).name} | {said} | {truth} |" for name, said, truth in rows]
            table = "\n".join(["| image | caption | reference |", "|---|---|---|", *lines])
            with self._writing():
                self._board.add_text("captions", table, step)

    def make_durable(self) -> int:
        """Flush the log to disk, and return its size in bytes."""
        assert self._file is not None, "the first rank has the log"
        with self._writing():
            os.fsync(self._file.fileno())
            return self._file.tell()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for part in (self._file, self._board):
            if part is not None:
                with suppress(OSError):  # what could not be written was reported when it was
                    part.close()

    def _append(self, row: dict[str, object]) -> None:
        if self._file:
            with self._writing():
                self._file.write(json.dumps(row).encode() + b"\n")
                self._file.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(f"{self._folder}: the log cannot be written ({error.strerror or error})") from error


def _open_board(folder: Path, step: int) -> "SummaryWriter":
    require_extra("train", "the log of a run")
    from torch.utils.tensorboard import SummaryWriter  # late: only training needs it

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


class Throughput:
    """Pairs per second since the last line of the log. The time of validation and saving does not count."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._num_pairs = 0
        self._seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Count the time from now on."""
        self._began = time.monotonic()

    def add(self) -> None:
        """Count a finished step."""
        now = time.monotonic()
        self._num_pairs += self._batch_size
        self._seconds += now - self._began
        self._began = now

    def take(self) -> float:
        """Return the pace, and start again from zero."""
        pace = self._num_pairs / max(self._seconds, 1e-9)
        self._num_pairs, self._seconds = 0, 0.0
        return pace


def read_metrics(folder: Path, split: str) -> list[dict[str, float]]:
    """The lines of one split of a run's log, in order. Events have the split `events`."""
    lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]
