"""The figures of a study, as SVG text: `study_figures`.

Its plots follow: forest plots, the change of each seed, interaction plots, learning curves.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from grr_coca.study.drawing import COLOURS, FAINT, new_figure, style_axes, svg_text
from grr_coca.study.ledger import Ledger, LedgerRow
from grr_coca.study.plan import Plan, stage_names
from grr_coca.study.report.answer import arm_titles, headline_endpoint, listed, signed
from grr_coca.study.report.numbers import (
    PHASE_TITLES,
    Effect,
    Endpoint,
    StudyResults,
    corner_logs,
    factorial_corners,
    rows_by_run,
)
from grr_coca.study.report.tables import effect_title
from grr_coca.study.statistics import MARGIN, Cell, as_percent, standard_error

_COLUMNS = 3
"""Panels of a row of changes by seed."""
_ROW_HEIGHT = 0.27
_MARGIN_HEIGHT = 0.95
"""Inches of a row, and of the rest of a forest plot."""
_LEVELS = ("without", "with")
_LOSSES = {
    "contrastive_loss": "contrastive loss",
    "captioning_loss": "captioning loss (nats per token)",
    "coca_loss": "CoCa loss",
}


@dataclass(frozen=True)
class StageCurves:
    """The learning curves of a stage, and a sentence on their change at the end; empty if that is unknown."""

    stage: str
    plot: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class StudyFigures:
    """SVG text of each figure; empty if there is nothing to show.

    - `primary`, `secondary`: forest plots of the first arm
    - `dots`: the change of each seed
    - `effects`: by phase, a forest plot of every arm and every effect of the factorial
    """

    primary: str
    secondary: str
    dots: str
    effects: dict[str, str]
    interaction: str
    curves: tuple[StageCurves, ...]


def study_figures(plan: Plan, ledger: Ledger, results: StudyResults) -> StudyFigures:
    """Draw all figures for which the ledger has rows."""
    return StudyFigures(
        primary=_main_forest(plan, results, primary=True),
        secondary=_main_forest(plan, results, primary=False),
        dots=_dots(plan, results),
        effects=_effects_forests(plan, results),
        interaction=_interaction(plan, ledger),
        curves=tuple(_stage_curves(plan, ledger, results)),
    )


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


def _effects_forests(plan: Plan, results: StudyResults) -> dict[str, str]:
    """By phase, a forest plot of every arm, main effect and interaction on the primary endpoints."""
    titles = arm_titles(plan)
    labels = [titles[arm.arm] for arm in results.begun_arms]
    labels += [f"{'effect of ' if len(f.factors) == 1 else ''}{effect_title(f.factors)}" for f in results.factorial]
    singles = sum(len(found.factors) == 1 for found in results.factorial)
    rules = (len(results.begun_arms), len(results.begun_arms) + singles) if results.factorial else ()
    over = f"over {titles[results.baseline]}"
    change = f"change (of an arm {over})" if results.factorial else f"change {over}"
    plots = {}
    for phase, phase_title in PHASE_TITLES.items():
        endpoints = [e for e in map(Endpoint, plan.endpoints.primary) if e.phase == phase]
        panels = [_effects_panel(results, endpoint) for endpoint in endpoints]
        if any(any(panel.effects) for panel in panels):
            plots[phase_title] = _forest_plot(labels, panels, change, rules)
    return plots


def _effects_panel(results: StudyResults, endpoint: Endpoint) -> _ForestPanel:
    arms = [next(r.effect for r in arm.endpoints if r.endpoint == endpoint.name) for arm in results.begun_arms]
    factorial = [found.effects.get(endpoint.name) for found in results.factorial]
    return _ForestPanel(endpoint.title, [*arms, *factorial], endpoint.lower_is_better)


def _forest_plot(labels: Sequence[str], panels: Sequence[_ForestPanel], change: str, rules: Sequence[int] = ()) -> str:
    """A forest plot: effects with their intervals, in panels side by side with common rows.

    Args:
        labels: labels of the rows, from top to bottom.
        panels: the columns.
        change: what the effects are, such as `change over Baseline CoCa`, for the axis.
        rules: rows above which a line separates groups.
    """
    figure = new_figure(_MARGIN_HEIGHT + _ROW_HEIGHT * len(labels))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel)
        for row in rules:
            axes.axhline(row - 0.5, color=FAINT, linewidth=0.6)
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


# --- The change of each seed


def _dots(plan: Plan, results: StudyResults) -> str:
    chosen = [result for result in results.arms[0].endpoints if result.is_primary]
    titles = [Endpoint(result.endpoint).full_title for result in chosen]
    effects = [result.effect for result in chosen]
    return _seed_dots(titles, effects, arm_titles(plan)[results.baseline]) if any(effects) else ""


def _seed_dots(titles: Sequence[str], effects: Sequence[Effect | None], baseline: str) -> str:
    """The change of each seed in a panel for each endpoint, with the mean and its interval below."""
    columns = min(_COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    max_seeds = max((effect.num_seeds for effect in effects if effect is not None), default=1)
    figure = new_figure(rows * (0.9 + 0.16 * max_seeds) + 0.2)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
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


# --- Interaction plots


def _interaction(plan: Plan, ledger: Ledger) -> str:
    rows = rows_by_run(ledger.rows)
    panels = {}
    for phase in PHASE_TITLES:
        endpoint = headline_endpoint(plan, phase)
        logs = corner_logs(rows, plan, endpoint.name) if endpoint else {}
        if endpoint and logs:
            panels[endpoint.full_title] = {cell: np.array(list(found.values())) for cell, found in logs.items()}
    return _interaction_plot(panels, arm_titles(plan)[factorial_corners(plan)[frozenset()]]) if panels else ""


def _interaction_plot(panels: Mapping[str, Mapping[Cell, np.ndarray]], baseline: str) -> str:
    """An interaction plot for each endpoint (row) and pair of factors (column), averaged over all other factors.

    Parallel lines: the effects of the two factors add up. A point is the mean over seeds with its standard error.

    Args:
        panels: by the display name of an endpoint, the log of its metric in each corner, a value for each seed; at
            least two factors.
        baseline: display name of the corner without any factor, over which changes are computed.
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
        label = f"{_LEVELS[has_second]} {second}"
        bars = np.stack([means - low, high - means])
        axes.errorbar([0, 1], means, bars, fmt=style, color=colour, markersize=4, linewidth=1.4, capsize=2, label=label)
    axes.set_xticks([0, 1], [f"{level} {first}" for level in _LEVELS])
    axes.set_xlim(-0.35, 1.35)
    axes.margins(y=0.15)


def _mean_of(changes: Mapping[Cell, np.ndarray], wanted: Mapping[str, bool]) -> np.ndarray:
    """Mean over the corners that have the factors marked True in `wanted`, and lack those marked False; a value per
    seed."""
    chosen: Sequence[np.ndarray] = [
        values for cell, values in changes.items() if all((factor in cell) is has for factor, has in wanted.items())
    ]
    return np.mean(chosen, axis=0)


# --- Learning curves


class LateChange(NamedTuple):
    """The change in per cent of a validation loss from `step` to the last step."""

    percent: float
    step: int


def late_change(rows: Sequence[LedgerRow], arm: str) -> LateChange | None:
    """The change of an arm's mean CoCa loss on `val` over about the last quarter of the steps.

    It begins at the nearest validation, and shows if the curve has become flat. None with fewer than two
    validations.
    """
    steps, curves = _curves(rows, arm, "coca_loss")
    if len(steps) < 2:
        return None
    mean = curves.mean(axis=0)
    begin = int(np.abs(steps[:-1] - 0.75 * steps[-1]).argmin())
    return LateChange(100 * (float(mean[-1] / mean[begin]) - 1), int(steps[begin]))


def late_changes(plan: Plan, ledger: Ledger, results: StudyResults) -> dict[str, str]:
    """By stage with learning curves, a sentence on their change at the end; empty if that is unknown."""
    titles = arm_titles(plan)
    sentences = {}
    for stage in stage_names(plan):
        rows = _rows_with_curves(ledger, stage)
        changes = [(titles[arm], late_change(rows, arm)) for arm in main_and_baseline(results)]
        if rows:
            sentences[stage] = _late_changes([(title, change) for title, change in changes if change is not None])
    return sentences


def _late_changes(changes: Sequence[tuple[str, LateChange]]) -> str:
    told = [f"{signed(change.percent)} % ({title}, from step {change.step:,} on)" for title, change in changes]
    return f"at the end the CoCa loss changed by {listed(told)}." if told else ""


def _stage_curves(plan: Plan, ledger: Ledger, results: StudyResults) -> list[StageCurves]:
    shown, titles = main_and_baseline(results), arm_titles(plan)
    return [
        StageCurves(stage, _validation_curves(_rows_with_curves(ledger, stage), shown, titles), sentence)
        for stage, sentence in late_changes(plan, ledger, results).items()
    ]


def _rows_with_curves(ledger: Ledger, stage: str) -> list[LedgerRow]:
    return [row for row in ledger.rows if row.stage == stage and row.curve]


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
