"""The figures of a study, as SVG text: forest plots and learning curves."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from grr_coca.study.drawing import COLOURS, FAINT, new_figure, style_axes, svg_text
from grr_coca.study.ledger import Ledger
from grr_coca.study.plan import Plan, stage_names
from grr_coca.study.report.numbers import PHASE_TITLES, Effect, Endpoint, StudyResults
from grr_coca.study.report.verdict import arm_titles
from grr_coca.study.rows import LedgerRow
from grr_coca.study.statistics import MARGIN

_ROW_HEIGHT = 0.27
_MARGIN_HEIGHT = 0.95
"""Inches of a row, and of the rest of a forest plot."""
_LOSSES = {
    "contrastive_loss": "contrastive loss",
    "captioning_loss": "captioning loss (nats per token)",
    "coca_loss": "CoCa loss",
}


def study_figures(plan: Plan, ledger: Ledger, results: StudyResults) -> dict[str, str]:
    """SVG text of all figures for which the ledger has rows, by name.

    - `primary`, `secondary`: forest plots of the first arm
    - `arms-PHASE`: forest plots of every arm, if there are several
    - `curves-STAGE`: learning curves
    """
    drawn = {name: _main_forest(plan, results, primary=name == "primary") for name in ("primary", "secondary")}
    if len(results.begun_arms) > 1:
        drawn |= {f"arms-{phase}": svg for phase, svg in _arms_forests(plan, results).items()}
    for stage in stage_names(plan):
        if rows := [row for row in ledger.rows if row.stage == stage and row.curve]:
            drawn[f"curves-{stage}"] = _validation_curves(rows, main_and_baseline(results), arm_titles(plan))
    return {name: svg for name, svg in drawn.items() if svg}


def main_and_baseline(results: StudyResults) -> tuple[str, str]:
    """Names of the first arm, which a report is about, and of the baseline."""
    return results.arms[0].arm, results.baseline


# --- Forest plots


@dataclass(frozen=True)
class _ForestPanel:
    """A column of a forest plot: an effect, or None, for each row of the figure."""

    title: str
    effects: Sequence[Effect | None]
    lower_is_better: bool = True


def _main_forest(plan: Plan, results: StudyResults, *, primary: bool) -> str:
    """A forest plot of the first arm, with one panel for losses and one for metrics of which higher is better."""
    chosen = [result for result in results.arms[0].endpoints if result.is_primary is primary]
    panels = []
    for lower_is_better in (True, False):
        mine = [r.effect if Endpoint(r.endpoint).lower_is_better is lower_is_better else None for r in chosen]
        if any(mine):
            panels.append(_ForestPanel("losses" if lower_is_better else "recall, captions", mine, lower_is_better))
    labels = [Endpoint(result.endpoint).full_title for result in chosen]
    return _forest_plot(labels, panels, f"change over {arm_titles(plan)[results.baseline]}") if panels else ""


def _arms_forests(plan: Plan, results: StudyResults) -> dict[str, str]:
    """By phase, a forest plot of every arm on the primary endpoints."""
    titles = arm_titles(plan)
    labels = [titles[arm.arm] for arm in results.begun_arms]
    plots = {}
    for phase in PHASE_TITLES:
        endpoints = [e for e in map(Endpoint, plan.endpoints.primary) if e.phase == phase]
        panels = [_arms_panel(results, endpoint) for endpoint in endpoints]
        if any(any(panel.effects) for panel in panels):
            plots[phase] = _forest_plot(labels, panels, f"change over {titles[results.baseline]}")
    return plots


def _arms_panel(results: StudyResults, endpoint: Endpoint) -> _ForestPanel:
    effects = [next(r.effect for r in arm.endpoints if r.endpoint == endpoint.name) for arm in results.begun_arms]
    return _ForestPanel(endpoint.title, effects, endpoint.lower_is_better)


def _forest_plot(labels: Sequence[str], panels: Sequence[_ForestPanel], change: str) -> str:
    """A forest plot: effects with their intervals, in panels side by side with common rows.

    Args:
        labels: labels of the rows, from top to bottom.
        panels: the columns.
        change: what the effects are, such as `change over Baseline CoCa`, for the axis.
    """
    figure = new_figure(_MARGIN_HEIGHT + _ROW_HEIGHT * len(labels))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel)
    all_axes[0].set_yticks(range(len(labels)), labels)
    all_axes[0].set_ylim(len(labels) - 0.5, -0.5)
    told = "in colour where 0 lies outside of it (not corrected for several tests)"
    axis = f"{change} in %, with 95 % interval, {told}; band: within ±{MARGIN:g} %"
    figure.supxlabel(textwrap.fill(axis, 150), fontsize=8)
    return svg_text(figure)


def _draw_panel(axes: Axes, panel: _ForestPanel) -> None:
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
    """A dot and its interval: blue on the better side of zero, orange on the worse, grey if the interval has zero."""
    colour = FAINT
    if effect.excludes_zero:
        colour = COLOURS[0] if (effect.change < 0) == lower_is_better else COLOURS[1]
    if effect.low is not None and effect.high is not None:
        axes.plot([effect.low, effect.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot([effect.change], [row], "o", color=colour, markersize=5)


# --- Learning curves


def _validation_curves(rows: Sequence[LedgerRow], shown: Sequence[str], titles: Mapping[str, str]) -> str:
    """Draw validation losses of a stage by step: means over seeds, with their range for the arms in `shown`.

    Args:
        rows: rows of one stage, of all arms and seeds.
        shown: the first arm and the baseline; other arms are faint lines behind them.
        titles: display names of the arms.
    """
    arms = list(dict.fromkeys(row.arm for row in rows))
    behind = [arm for arm in arms if arm not in shown]
    figure = new_figure(2.9)
    for axes, (loss, title) in zip(figure.subplots(1, len(_LOSSES)), _LOSSES.items(), strict=True):
        for arm in behind:
            steps, curves = _curves(rows, arm, loss)
            axes.plot(steps, curves.mean(axis=0), color=FAINT, linewidth=0.8, label="other arms")
        for arm, colour, marker in zip(shown, COLOURS, ("o", "s"), strict=True):
            _draw_arm(axes, *_curves(rows, arm, loss), colour, marker, titles[arm])
        style_axes(axes, title)
        axes.set_xlabel("training step", fontsize=8)
    labelled = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return svg_text(figure)


def _draw_arm(axes: Axes, steps: np.ndarray, curves: np.ndarray, colour: str, marker: str, title: str) -> None:
    if len(steps):
        axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, curves.mean(axis=0), color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=title)


def _curves(rows: Sequence[LedgerRow], arm: str, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all seeds have, and the curve of each seed."""
    curves = [
        {point.step: point.val[loss] for point in row.curve if loss in point.val} for row in rows if row.arm == arm
    ]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in curves]).reshape(
        len(curves), len(steps)
    )
