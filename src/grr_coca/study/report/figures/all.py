"""All figures of a study."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grr_coca.study.ledger import Ledger, LedgerRow
from grr_coca.study.plan.plan import Plan, stage_names
from grr_coca.study.report.answer import headline_endpoint
from grr_coca.study.report.figures.curves import LateChange, late_change, validation_curves
from grr_coca.study.report.figures.dots import seed_dots
from grr_coca.study.report.figures.forest import ForestPanel, forest_plot
from grr_coca.study.report.figures.interaction import interaction_plot
from grr_coca.study.report.numbers.corners import factorial_corners
from grr_coca.study.report.numbers.factors import corner_logs
from grr_coca.study.report.numbers.metrics import PHASE_TITLES, Endpoint, rows_by_run
from grr_coca.study.report.numbers.results import StudyResults
from grr_coca.study.report.tables import effect_title
from grr_coca.study.report.words import arm_titles, listed, signed


@dataclass(frozen=True)
class StageCurves:
    """The learning curves of a stage, and a sentence on how flat they have become; empty where that is unknown."""

    stage: str
    plot: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class StudyFigures:
    """SVG text of each figure; empty where there is nothing to show.

    `primary`, `secondary`: forests of the arm that is asked about. `dots`: each seed's change.
    `effects`: by the title of a phase, a forest of every arm and every effect of the factorial.
    """

    primary: str
    secondary: str
    dots: str
    effects: dict[str, str]
    interaction: str
    curves: tuple[StageCurves, ...]


def study_figures(plan: Plan, ledger: Ledger, results: StudyResults) -> StudyFigures:
    """Draw everything that the rows allow."""
    return StudyFigures(
        primary=_main_forest(plan, results, primary=True),
        secondary=_main_forest(plan, results, primary=False),
        dots=_dots(plan, results),
        effects=_effects_forests(plan, results),
        interaction=_interaction(plan, ledger),
        curves=tuple(_curves(plan, ledger, results)),
    )


def main_and_baseline(results: StudyResults) -> tuple[str, str]:
    """The arm that a study asks about, and the baseline, by name."""
    return results.arms[0].arm, results.baseline


def _main_forest(plan: Plan, results: StudyResults, *, primary: bool) -> str:
    """Endpoints of the arm that is asked about: losses, and where a higher value is better a panel of its own."""
    chosen = [result for result in results.arms[0].endpoints if result.is_primary is primary]
    panels = []
    for lower_is_better in (True, False):
        mine = [r.effect if Endpoint(r.endpoint).lower_is_better is lower_is_better else None for r in chosen]
        if any(mine):
            panels.append(ForestPanel("losses" if lower_is_better else "recall, captions", mine, lower_is_better))
    labels = [Endpoint(result.endpoint).full_title for result in chosen]
    return forest_plot(labels, panels, f"change over {arm_titles(plan)[results.baseline]}") if panels else ""


def _dots(plan: Plan, results: StudyResults) -> str:
    chosen = [result for result in results.arms[0].endpoints if result.is_primary]
    titles = [Endpoint(result.endpoint).full_title for result in chosen]
    effects = [result.effect for result in chosen]
    return seed_dots(titles, effects, arm_titles(plan)[results.baseline]) if any(effects) else ""


def _effects_forests(plan: Plan, results: StudyResults) -> dict[str, str]:
    """By phase: every arm, main effect and interaction on every primary endpoint."""
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
            plots[phase_title] = forest_plot(labels, panels, change, rules)
    return plots


def _effects_panel(results: StudyResults, endpoint: Endpoint) -> ForestPanel:
    arms = [next(r.effect for r in arm.endpoints if r.endpoint == endpoint.name) for arm in results.begun_arms]
    factorial = [found.effects.get(endpoint.name) for found in results.factorial]
    return ForestPanel(endpoint.title, [*arms, *factorial], endpoint.lower_is_better)


def _interaction(plan: Plan, ledger: Ledger) -> str:
    rows = rows_by_run(ledger.rows)
    panels = {}
    for phase in PHASE_TITLES:
        endpoint = headline_endpoint(plan, phase)
        logs = corner_logs(rows, plan, endpoint.name) if endpoint else {}
        if endpoint and logs:
            panels[endpoint.full_title] = {cell: np.array(list(found.values())) for cell, found in logs.items()}
    return interaction_plot(panels, arm_titles(plan)[factorial_corners(plan)[frozenset()]]) if panels else ""


def late_changes(plan: Plan, ledger: Ledger, results: StudyResults) -> dict[str, str]:
    """By stage that has learning curves: a sentence on how flat they have become, empty where that is unknown."""
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


def _curves(plan: Plan, ledger: Ledger, results: StudyResults) -> list[StageCurves]:
    shown, titles = main_and_baseline(results), arm_titles(plan)
    return [
        StageCurves(stage, validation_curves(_rows_with_curves(ledger, stage), shown, titles), sentence)
        for stage, sentence in late_changes(plan, ledger, results).items()
    ]


def _rows_with_curves(ledger: Ledger, stage: str) -> list[LedgerRow]:
    return [row for row in ledger.rows if row.stage == stage and row.curve]
