"""Drawing that all reports share: colours that every kind of colour vision tells apart, and figures as SVG text."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1741f")
"""Model and baseline; told apart in print too."""
FAINT = "#8a939d"
"""What stands behind: other arms, zero lines."""
WIDTH = 9.0
"""Inches, that of a page."""


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def style_axes(axes: Axes, title: str) -> None:
    """The look of all plots: a title at the left, two spines, faint horizontal lines."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.25)


def svg_text(figure: Figure) -> str:
    """A figure as an SVG element. Text stays text, and equal figures give equal bytes."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "grr-coca", "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
