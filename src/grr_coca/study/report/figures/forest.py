"""Forest plots: effects with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from grr_coca.study.drawing import COLOURS, FAINT, new_figure, style_axes, svg_text
from grr_coca.study.report.numbers.effect import Effect
from grr_coca.study.statistics.power import MARGIN

ROW_HEIGHT = 0.27
MARGIN_HEIGHT = 0.95


@dataclass(frozen=True)
class ForestPanel:
    """One column of a forest plot: an effect for each row of the figure, None where there is none yet."""

    title: str
    effects: Sequence[Effect | None]
    lower_is_better: bool = True


def forest_plot(labels: Sequence[str], panels: Sequence[ForestPanel], change: str, rules: Sequence[int] = ()) -> str:
    """Panels side by side with common rows.

    Args:
        labels: of the rows, from top to bottom.
        panels: the columns.
        change: what the effects are, for the axis: `change over Baseline CoCa`.
        rules: rows above which a line is drawn, so that groups stand apart.
    """
    figure = new_figure(MARGIN_HEIGHT + ROW_HEIGHT * len(labels))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel)
        for row in rules:
            axes.axhline(row - 0.5, color=FAINT, linewidth=0.6)
    all_axes[0].set_yticks(range(len(labels)), labels)
    all_axes[0].set_ylim(len(labels) - 0.5, -0.5)
    told = "in colour where 0 lies outside of it (not corrected for several tests)"
    axis = f"{change} in %, with 95 % interval, {told}; band: within ±{MARGIN:g} %"
    figure.supxlabel(axis, fontsize=8)
    return svg_text(figure)


def _draw_panel(axes: Axes, panel: ForestPanel) -> None:
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


def _draw_effect(axes: Axes, row: int, effect: Effect, lower_is_better: bool) -> None:
    """A dot and its interval; blue where the interval is on the better side, orange on the worse, grey over zero."""
    colour = FAINT
    if effect.excludes_zero:
        colour = COLOURS[0] if (effect.change < 0) == lower_is_better else COLOURS[1]
    if effect.low is not None and effect.high is not None:
        axes.plot([effect.low, effect.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot([effect.change], [row], "o", color=colour, markersize=5)
