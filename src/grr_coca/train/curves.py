"""A plot of the learning curves of a run: losses of training and validation, and recalls on validation pairs."""

import io
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from grr_coca.common.files import write_whole
from grr_coca.train.logs import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

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


def draw_curves(folder: Path, best_step: int | None) -> None:
    """Draw the log of a run into `CURVES_FILE` of its folder, from its second validation on, if matplotlib is
    installed.

    If the plot cannot be written, this is reported, and the run continues.

    Args:
        folder: The run folder.
        best_step: Step of the run that is marked as the best; None: no mark.
    """
    if find_spec("matplotlib") is None:
        return
    train, val = (read_metrics(folder, split) for split in ("train", "val"))
    if len(val) < 2:
        return
    try:
        write_whole(folder / CURVES_FILE, _picture(train, val, best_step))
    except OSError as error:
        log.warning("%s: cannot be written (%s)", folder / CURVES_FILE, error.strerror or error)


def _picture(train: Rows, val: Rows, best_step: int | None) -> bytes:
    from matplotlib.figure import Figure  # lazy import: few runs draw, and it takes half a second

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
    """Draw a metric over the steps, if the log has it."""
    points = [(row["step"], scale * row[name]) for row in rows if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 30 else ""
        axes.plot(steps, values, style, color=colour, label=label, linewidth=1.5, marker=marker, markersize=3)
