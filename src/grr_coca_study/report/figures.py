"""Figures of a study as SVG text: forest plots and learning curves."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grr_coca_study.rows import LedgerRow
from grr_coca_study.statistics import MARGIN, Effect

COLOURS = ("#1b6ca8", "#d1741f")
"""Colours of model and baseline. Colour-blind readers can distinguish them, and so can readers of black-and-white
prints."""
FAINT = "#8a939d"
"""Background colour for other arms and zero lines."""
_WIDTH = 9.0
"""Width of a page, in inches."""
_ROW_HEIGHT = 0.27
_MARGIN_HEIGHT = 0.95
"""Height, in inches, of a row, and of the other parts of a forest plot."""
_LOSSES = {
    "contrastive_loss": "contrastive loss",
    "captioning_loss": "captioning loss (nats per token)",
    "coca_loss": "CoCa loss",
}
_MARKERS = ("o", "s")


class Panel(NamedTuple):
    """Column of a forest plot: its title, and an effect for each row of the figure, or None for an empty row."""

    title: str
    effects: Sequence[Effect | None]
    lower_is_better: bool = True


def forest_plot(labels: Sequence[str], panels: Sequence[Panel], change: str) -> str:
    """Plot effects and their intervals, in panels side by side that have the same rows.

    Args:
        labels: Labels of the rows, from top to bottom.
        panels: Columns. Columns without an effect are omitted.
        change: Description of the effects, such as `change over Baseline CoCa`, for the axis.

    Returns:
        The plot as SVG text, which is empty if no panel has an effect.
    """
    shown = [panel for panel in panels if any(panel.effects)]
    if not shown:
        return ""
    figure = new_figure(_MARGIN_HEIGHT + _ROW_HEIGHT * len(labels))
    all_axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, shown, strict=True):
        axes.axvspan(-MARGIN, MARGIN, color=FAINT, alpha=0.14, linewidth=0)
        axes.axvline(0, color="black", linewidth=0.8)
        for row, effect in enumerate(panel.effects):
            if effect is not None:
                _draw_effect(axes, row, effect, panel.lower_is_better)
        style_axes(axes, panel.title)
        axes.set_title("← better" if panel.lower_is_better else "better →", fontsize=8, loc="right", color="#5b6570")
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)
    all_axes[0].set_yticks(range(len(labels)), labels)
    all_axes[0].set_ylim(len(labels) - 0.5, -0.5)
    # A single seed has no interval.
    has_interval = any(effect.interval for panel in shown for effect in panel.effects if effect is not None)
    description = ", with 95 % interval, in colour if the interval excludes 0 (not corrected for several tests)"
    axis = f"{change} in %{description if has_interval else ''}; band: within ±{MARGIN:g} %"
    figure.supxlabel(textwrap.fill(axis, 150), fontsize=8)
    return svg_text(figure)


def _draw_effect(axes: Axes, row: int, effect: Effect, lower_is_better: bool) -> None:
    """Draw an effect as a dot with its interval: blue if better, orange if worse, and grey if the interval includes
    zero.
    """
    colour = FAINT
    if effect.interval is not None:
        low, high = effect.interval
        if low * high > 0:
            colour = COLOURS[0] if (effect.change < 0) == lower_is_better else COLOURS[1]
        axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot([effect.change], [row], "o", color=colour, markersize=5)


def learning_curves(rows: Sequence[LedgerRow], titles: Mapping[str, str]) -> str:
    """Plot the validation losses of a stage by step, as geometric means over seeds and their range.

    Args:
        rows: Rows of one stage, of all arms and seeds.
        titles: Display names of the first arm and the baseline, in this order. Other arms are faint lines in the
            background.

    Returns:
        The plot as SVG text.
    """
    others = {row.arm: "other arms" for row in rows if row.arm not in titles}
    figure = new_figure(2.9)
    for axes, (loss, title) in zip(figure.subplots(1, len(_LOSSES)), _LOSSES.items(), strict=True):
        for arm, label in {**others, **titles}.items():
            curves = [{p.step: p.val[loss] for p in row.curve if loss in p.val} for row in rows if row.arm == arm]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            losses = np.array([[curve[step] for step in steps] for curve in curves])
            if not steps:
                continue
            if arm in others:
                axes.plot(steps, np.exp(np.log(losses).mean(axis=0)), color=FAINT, linewidth=0.8, label=label)
            else:
                _draw_band(axes, steps, losses, list(titles).index(arm), label)
        style_axes(axes, title)
        axes.set_xlabel("training step", fontsize=8)
    labelled = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return svg_text(figure)


def _draw_band(axes: Axes, places: Sequence[float], losses: np.ndarray, side: int, label: str) -> None:
    """Draw the geometric mean and the range of losses (S × P), at the steps at which the losses of all seeds are
    finite.
    """
    sound = np.isfinite(losses).all(axis=0)
    shown, at = losses[:, sound], np.array(places)[sound]
    axes.fill_between(at, shown.min(axis=0), shown.max(axis=0), color=COLOURS[side], alpha=0.2, linewidth=0)
    mean, colour = np.exp(np.log(shown).mean(axis=0)), COLOURS[side]
    axes.plot(at, mean, color=colour, marker=_MARKERS[side], markersize=3.5, linewidth=1.4, label=label)


def new_figure(height: float) -> Figure:
    """Create an empty figure of page width. `height` is the height in inches."""
    return Figure(figsize=(_WIDTH, height), layout="constrained")


def style_axes(axes: Axes, title: str) -> None:
    """Style a plot: a left-aligned title, two spines, and faint horizontal grid lines."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.25)


def svg_text(figure: Figure) -> str:
    """Convert a figure to an SVG element. Text is not converted to paths, and equal figures yield equal bytes."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "grr-coca", "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
