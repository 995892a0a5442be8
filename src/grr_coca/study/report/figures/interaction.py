"""How the parts of a factorial act together: interaction plots."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes

from grr_coca.study.drawing import COLOURS, new_figure, style_axes, svg_text
from grr_coca.study.statistics.factorial import Cell
from grr_coca.study.statistics.paired import as_percent, standard_error

LEVELS = ("without", "with")


def interaction_plot(panels: Mapping[str, Mapping[Cell, np.ndarray]], baseline: str) -> str:
    """A row of plots for each endpoint and a plot for each pair of factors, averaged over all other factors.

    Parallel lines: the two factors add up. A point is the mean over seeds with its standard error.

    Args:
        panels: by the title of an endpoint, log of its metric in each corner, one value a seed; at least two factors.
        baseline: the corner without any factor, from which changes are counted.
    """
    factors = [factor for cell in next(iter(panels.values())) if len(cell) == 1 for factor in cell]
    pairs = list(combinations(factors, 2))
    figure = new_figure(0.5 + 2.1 * len(panels))
    rows = figure.subplots(len(panels), len(pairs), squeeze=False, sharey="row")
    for all_axes, (title, cells) in zip(rows, panels.items(), strict=True):
        zero = next(values for cell, values in cells.items() if not cell)
        changes = {cell: values - zero for cell, values in cells.items()}
        for axes, (first, second) in zip(all_axes, pairs, strict=True):
            _draw_pair(axes, changes, first, second)
            style_axes(axes, title if axes is all_axes[0] else "")
            axes.axhline(0, color="black", linewidth=0.6)
            axes.legend(frameon=False, fontsize=7)
    figure.supylabel(f"change over {baseline} in %", fontsize=8)
    return svg_text(figure)


def _draw_pair(axes: Axes, changes: Mapping[Cell, np.ndarray], first: str, second: str) -> None:
    for has_second, colour, style in zip((False, True), reversed(COLOURS), ("s--", "o-"), strict=True):
        found = [_mean_of(changes, {first: has_first, second: has_second}) for has_first in (False, True)]
        logs = np.array([values.mean() for values in found])
        errors = np.array([float(np.nan_to_num(standard_error(values))) for values in found])
        means, low, high = (as_percent(ends) for ends in (logs, logs - errors, logs + errors))
        label = f"{LEVELS[has_second]} {second}"
        bars = np.stack([means - low, high - means])
        axes.errorbar([0, 1], means, bars, fmt=style, color=colour, markersize=4, linewidth=1.4, capsize=2, label=label)
    axes.set_xticks([0, 1], [f"{level} {first}" for level in LEVELS])
    axes.set_xlim(-0.35, 1.35)
    axes.margins(y=0.15)


def _mean_of(changes: Mapping[Cell, np.ndarray], wanted: Mapping[str, bool]) -> np.ndarray:
    """Mean over the corners that have, and have not, the factors that are wanted; one value a seed."""
    chosen: Sequence[np.ndarray] = [
        values for cell, values in changes.items() if all((factor in cell) is has for factor, has in wanted.items())
    ]
    return np.mean(chosen, axis=0)
