"""Drawing that all reports share: colours that every kind of colour vision tells apart, and figures as SVG text.

Pages of reports: one HTML file each, with everything in it.
"""

import io
from importlib import resources

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1741f")
"""Model and baseline; told apart in print too."""
FAINT = "#8a939d"
"""What stands behind: other arms, zero lines."""
WIDTH = 9.0
"""Inches, that of a page."""


def new_figure(height: float) -> Figure:
    """An empty figure as wide as a page; height in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


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


STYLE_FILE = "page.css"


def render_page(room: str, template: str, **values: object) -> str:
    """Fill in a template; `style` is known to it, the look that all pages share.

    Args:
        room: the package in which the template lies.
        template: its file name.
        values: what it shows.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda share: f"{share:+.2%}"
    colours = f"  :root {{ --a: {COLOURS[0]}; --b: {COLOURS[1]}; --line: #d9dde2; --soft: #5b6570; }}\n"
    style = colours + _text("grr_coca.study", STYLE_FILE)
    return environment.from_string(_text(room, template)).render(style=style, **values)


def _text(room: str, name: str) -> str:
    return resources.files(room).joinpath(name).read_text("utf-8")
