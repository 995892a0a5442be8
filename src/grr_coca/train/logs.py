"""Progress of a run, its log (JSON lines and TensorBoard), its throughput and its learning curves."""

import io
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import torch

from grr_coca.common.errors import DiskError, require_extra
from grr_coca.common.files import write_bytes_atomic
from grr_coca.evaluate.caption_split import CaptionedSplit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

LOG_INTERVAL = 10
"""Number of steps per line of the log. A line contains the means of the metrics over these steps."""

SPIKE_MEMORY = 100
SPIKE_FACTOR = 6.0
"""Minimum number of standard deviations by which a spike of the loss exceeds the mean of the previous `SPIKE_MEMORY`
losses."""


@dataclass(kw_only=True)
class Progress:
    """State of a run, except the weights and the state of the optimizer. A stopped run continues from this state with
    identical results.

    Random states are not needed, because order, augmentation and dropped patches are functions of (seed, epoch,
    sample).

    Attributes:
        step: Number of finished steps.
        log_bytes: Size of the log after these steps, in bytes.
        skipped: Number of skipped steps.
        replaced: Number of replaced bad samples, by cause.
        skipped_in_a_row: Number of steps that were skipped since the last step that was not.
        window: Metrics of the steps since the last line of the log, without skipped steps.
        recent: The last `SPIKE_MEMORY` CoCa losses, without skipped steps.
        best: Score of the best checkpoint. None before the first validation, and if no best checkpoint is kept.
        best_step: Step of the best checkpoint, counted like checkpoints, from the first step of the start model.
    """

    step: int = 0
    log_bytes: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    replaced: dict[str, int] = field(default_factory=dict)
    window: tuple[dict[str, float], ...] = ()
    recent: tuple[float, ...] = ()
    best: float | None = None
    best_step: int | None = None

    def add(self, metrics: dict[str, float]) -> str | None:
        """Count a finished step with its metrics.

        Return its problem, or None if it has none: `not finite` if it was skipped because a metric is not finite, or
        `spike` if its CoCa loss exceeds the recent losses by far.
        """
        self.step += 1
        if not all(map(math.isfinite, metrics.values())):
            self.skipped += 1
            self.skipped_in_a_row += 1
            return "not finite"
        self.skipped_in_a_row = 0
        is_spike = self._is_spike(metrics["coca"])
        self.window = (*self.window, metrics)
        self.recent = (*self.recent, metrics["coca"])[-SPIKE_MEMORY:]
        return "spike" if is_spike else None

    def take_window(self) -> dict[str, float]:
        """Return the means of the metrics since the last line of the log, and empty the window.

        The total numbers of skipped steps and replaced samples in the run are included if they are not 0.
        """
        rows, self.window = self.window, ()
        means = {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}
        skipped = {"skipped": float(self.skipped)} if self.skipped else {}
        return {**means, **skipped, **{f"replaced/{cause}": float(n) for cause, n in sorted(self.replaced.items())}}

    def record_if_best(self, name: str, value: float, step: int) -> bool:
        """Return whether a validation score is better than all earlier scores. If so, record it and its step as best.

        A score that is not finite is never the best.
        """
        if score_to_maximize(name, value) <= (-math.inf if self.best is None else score_to_maximize(name, self.best)):
            return False
        self.best, self.best_step = value, step
        return True

    def _is_spike(self, loss: float) -> bool:
        if len(self.recent) < SPIKE_MEMORY:
            return False
        return loss > statistics.fmean(self.recent) + SPIKE_FACTOR * statistics.stdev(self.recent)


def score_to_maximize(name: str, value: float) -> float:
    """Convert a validation score to a number that is higher for better models.

    Losses and perplexity change their sign. Scores that are not finite become -inf.
    """
    if not math.isfinite(value):
        return -math.inf
    return -value if name.endswith(("loss", "perplexity")) else value


LOG_FILE = "metrics.jsonl"

NUM_LOGGED_CAPTIONS = 16
"""Number of captions that each validation logs, always for the same images."""


class MetricLog:
    """Log of a run, as a context manager. Its folder gets `metrics.jsonl` for programs and `tensorboard/` for users.

    If the folder is None, as on all ranks except rank 0, nothing is written.

    The lines of `metrics.jsonl` contain no times, so a stopped and resumed run writes the same bytes as an
    uninterrupted run. The throughput is logged only to TensorBoard.

    Every method that writes raises a `DiskError`, which names the folder, if the disk is full or cannot be written to.
    """

    def __init__(self, folder: Path | None, progress: Progress) -> None:
        """Open the log. Drop the lines after the checkpoint from which a run is resumed, or all lines for a new run."""
        self._folder = folder
        self._file: BinaryIO | None = None
        self._board: SummaryWriter | None = None
        if folder is not None:
            with self._log_errors():
                self._file = (folder / LOG_FILE).open("ab")
                self._file.truncate(min(progress.log_bytes, self._file.tell()))
                self._file.seek(0, os.SEEK_END)  # makes `tell` include the kept lines
                self._board = _open_board(folder, progress.step)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Log the metrics of a split, such as `train` or `val`, after `step` steps, also to TensorBoard."""
        self._append({"step": step, "split": split, **metrics})
        self.show(step, split, metrics)

    def event(self, step: int, kind: str, **details: object) -> None:
        """Log an unusual event, such as a skipped step, in the split `events`, but not to TensorBoard."""
        self._append({"step": step, "split": "events", "event": kind, **details})

    def show(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Log metrics only to TensorBoard."""
        for name, value in metrics.items():
            if self._board is not None:
                with self._log_errors():
                    self._board.add_scalar(f"{split}/{name}", value, step)

    def captions(self, step: int, captioned: CaptionedSplit) -> None:
        """Log the model's captions of the first few images, each next to a reference caption."""
        shown = range(min(NUM_LOGGED_CAPTIONS, len(captioned.names)))
        rows = [(captioned.names[i], captioned.hypotheses[i], captioned.references[i][0]) for i in shown]
        self._append({"step": step, "split": "captions", "captions": rows})
        if self._board is not None:
            cells = [(Path(name).name, hypothesis, truth) for name, hypothesis, truth in rows]
            lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in cells]
            table = "\n".join(["| image | caption | reference |", "|---|---|---|", *(f"| {line} |" for line in lines)])
            with self._log_errors():
                self._board.add_text("captions", table, step)

    def make_durable(self) -> int:
        """Flush the log to disk, and return its size in bytes."""
        assert self._file is not None, "only rank 0 has the log"
        with self._log_errors():
            os.fsync(self._file.fileno())
            return self._file.tell()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for part in (self._file, self._board):
            if part is not None:
                with suppress(OSError):  # the failed write has already been reported
                    part.close()

    def _append(self, row: dict[str, object]) -> None:
        if self._file:
            with self._log_errors():
                self._file.write(json.dumps(row).encode() + b"\n")
                self._file.flush()

    @contextmanager
    def _log_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(f"{self._folder}: the log cannot be written ({error.strerror or error})") from error


def _open_board(folder: Path, step: int) -> "SummaryWriter":
    require_extra("train", "the log of a run")
    from torch.utils.tensorboard import SummaryWriter  # lazy import, because only training needs it

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def device_use(device: torch.device) -> dict[str, float]:
    """Return the use of a CUDA GPU. For other devices, the result is empty, so that their log depends only on the run.

    `memory_gib` is the peak memory of tensors since the last call, in GiB. `utilization` is the fraction of about the
    last second in which the GPU computed; it is omitted if NVIDIA's package `nvidia-ml-py` is not installed.
    """
    if device.type != "cuda":
        return {}
    use = {"memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    torch.cuda.reset_peak_memory_stats(device)
    if find_spec("pynvml") is not None:
        use["utilization"] = torch.cuda.utilization(device) / 100
    return use


class Throughput:
    """Meter of a run's throughput in pairs per second. Call `add` after each step.

    Args:
        batch_size: Number of pairs per step.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._num_pairs = 0
        self._seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Restart the clock, so that the work since the last step, such as validation, is not counted."""
        self._began = time.monotonic()

    def add(self) -> None:
        """Count a finished step."""
        now = time.monotonic()
        self._num_pairs += self._batch_size
        self._seconds += now - self._began
        self._began = now

    def take(self) -> float:
        """Return the throughput in pairs per second since the last call, and reset it."""
        throughput = self._num_pairs / max(self._seconds, 1e-9)
        self._num_pairs, self._seconds = 0, 0.0
        return throughput


def read_metrics(folder: Path, split: str) -> list[dict[str, float]]:
    """Return the lines of a run's log for one split, in order. Events have the split `events`."""
    lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


# --- Learning curves

CURVES_FILE = "curves.png"
_COLOURS = ("#1b6ca8", "#d1741f", "#5a8f3c", "#8a939d")
_LOSSES = ("captioning", "contrastive")
_RECALLS = {
    "text_to_image/R@1": "text to image R@1",
    "text_to_image/R@10": "text to image R@10",
    "image_to_text/R@10": "image to text R@10",
    "chance/R@10": "chance R@10",
}

Rows = Sequence[Mapping[str, float]]


MIN_VALIDATIONS = 2
"""Minimum number of validations before a run is plotted."""


def draw_curves(folder: Path, best_step: int | None) -> None:
    """Plot the log of a run to `CURVES_FILE` in its folder, from the second validation on, if matplotlib is installed.

    If the plot cannot be written, a warning is logged, and the run continues.

    Args:
        folder: The run folder.
        best_step: Step of the run that is marked as the best. If None, no step is marked.
    """
    if find_spec("matplotlib") is None:
        return
    train, val = (read_metrics(folder, split) for split in ("train", "val"))
    if len(val) < MIN_VALIDATIONS:
        return
    try:
        write_bytes_atomic(folder / CURVES_FILE, _plot_png(train, val, best_step))
    except OSError as error:
        log.warning("%s: cannot be written (%s); the run continues", folder / CURVES_FILE, error.strerror or error)


def _plot_png(train: Rows, val: Rows, best_step: int | None) -> bytes:
    from matplotlib.figure import Figure  # lazy import, because it takes half a second and few runs draw curves

    figure = Figure(figsize=(12, 3.6), dpi=110, layout="constrained")
    panels = list(figure.subplots(1, 3))
    for axes, name in zip(panels, _LOSSES, strict=False):
        _plot(axes, train, name, "training", _COLOURS[0])
        _plot(axes, val, f"{name}_loss", "validation", _COLOURS[1])
        axes.set_title(f"{name} loss", fontsize=10, loc="left")
    for (name, title), colour in zip(_RECALLS.items(), _COLOURS, strict=True):
        _plot(panels[2], val, name, title, colour, scale=100, style="--" if "chance" in name else "-")
    panels[2].set_title("recall on validation pairs, %", fontsize=10, loc="left")
    panels[2].set_ylim(0, None)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", alpha=0.25)
        axes.set_xlabel("step", fontsize=8)
        if best_step is not None:
            axes.axvline(best_step, color="#8a939d", linewidth=1, linestyle=":", label=f"best, step {best_step:,}")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plot(axes: "Axes", rows: Rows, name: str, label: str, colour: str, *, scale: float = 1, style: str = "-") -> None:
    """Plot a metric over the steps, if the log contains it."""
    points = [(row["step"], scale * row[name]) for row in rows if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 30 else ""
        axes.plot(steps, values, style, color=colour, label=label, linewidth=1.5, marker=marker, markersize=3)
