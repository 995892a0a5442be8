"""Look of all figures: SVG text, in colours that colour-blind readers can distinguish."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1741f")
"""Model and baseline; they differ in a black-and-white print too."""
FAINT = "#8a939d"
"""Background: other arms, zero lines."""
_WIDTH = 9.0
"""Width of a page in inches."""


def new_figure(height: float) -> Figure:
    """An empty figure as wide as a page; height in inches."""
    return Figure(figsize=(_WIDTH, height), layout="constrained")


def style_axes(axes: Axes, title: str) -> None:
    """Style a plot: title at the left, two spines, faint horizontal grid lines."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.25)


def svg_text(figure: Figure) -> str:
    """A figure as an SVG element. Text is not turned into paths, and equal figures give equal bytes."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "grr-coca", "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
