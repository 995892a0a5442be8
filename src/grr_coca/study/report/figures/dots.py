"""Every seed's own change: paired dots."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from grr_coca.study.drawing import COLOURS, FAINT, new_figure, style_axes, svg_text
from grr_coca.study.report.numbers.effect import Effect

COLUMNS = 3


def seed_dots(titles: Sequence[str], effects: Sequence[Effect | None], baseline: str) -> str:
    """A panel for each endpoint: the change of each seed, and below them the mean with its interval."""
    rows = -(-len(titles) // COLUMNS)
    most = max((effect.num_seeds for effect in effects if effect is not None), default=1)
    figure = new_figure(rows * (0.9 + 0.16 * most) + 0.2)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, title, effect in zip(panels, titles, effects, strict=False):
        style_axes(axes, title)
        axes.axvline(0, color="black", linewidth=0.8)
        if effect is not None:
            _draw_seeds(axes, effect)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    figure.supxlabel(f"change over {baseline} with the same seed, in %", fontsize=8)
    figure.supylabel("seed", fontsize=8)
    return svg_text(figure)


def _draw_seeds(axes: Axes, effect: Effect) -> None:
    places = range(effect.num_seeds)
    axes.hlines(places, 0, effect.changes, color=FAINT, linewidth=1)
    axes.plot(effect.changes, places, "o", color=COLOURS[0], markersize=4)
    below = effect.num_seeds
    if effect.low is not None and effect.high is not None:
        axes.plot([effect.low, effect.high], [below, below], color="black", linewidth=2)
    axes.plot([effect.change], [below], "D", color="black", markersize=4)
    axes.set_yticks([*places, below], [*map(str, effect.seeds), "mean"])
    axes.set_ylim(below + 0.6, -0.6)
    axes.margins(x=0.1)
