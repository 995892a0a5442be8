"""The page of a study: `report.html`, with everything in it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grr_coca.study.ledger import Ledger
from grr_coca.study.page import render_page
from grr_coca.study.plan.plan import Plan, stage_names
from grr_coca.study.report.answer import answer, headline_endpoint
from grr_coca.study.report.examples import example_captions
from grr_coca.study.report.factors import corner_logs
from grr_coca.study.report.figures.curves import late_fall, validation_curves
from grr_coca.study.report.figures.dots import seed_dots
from grr_coca.study.report.figures.forest import ForestPanel, forest_plot
from grr_coca.study.report.figures.interaction import interaction_plot
from grr_coca.study.report.metrics import PHASE_TITLES, Endpoint, rows_by_run
from grr_coca.study.report.results import StudyResults
from grr_coca.study.report.tables import (
    arms_tables,
    cost_table,
    effect_title,
    endpoint_table,
    factorial_tables,
    tuning_table,
)
from grr_coca.study.report.words import arm_titles


def study_page(plan: Plan, ledger: Ledger, results: StudyResults, folder: Path) -> str:
    """The HTML of a study's report; nothing in it is loaded from elsewhere.

    Args:
        plan: of the study.
        ledger: its rows.
        results: what they amount to.
        folder: of the study, which may hold thumbnails of the showcase.
    """
    titles = arm_titles(plan)
    return render_page(
        "grr_coca.study.report",
        "study.html.j2",
        plan=plan,
        results=results,
        answer=answer(plan, results),
        titles=titles,
        primary=endpoint_table(plan, results, primary=True),
        secondary=endpoint_table(plan, results, primary=False),
        primary_forest=_main_forest(plan, results, primary=True),
        secondary_forest=_main_forest(plan, results, primary=False),
        dots=_dots(plan, results),
        effects_forests=_effects_forests(plan, results),
        arms=arms_tables(plan, results) if len(results.arms) > 1 else [],
        factorial=factorial_tables(plan, results),
        interaction=_interaction(plan, ledger),
        curves=_curves(plan, ledger, results),
        cost=cost_table(plan, results),
        tuning=tuning_table(plan, ledger) if ledger.trials else None,
        examples=example_captions(ledger.rows, _shown(results), folder),
    )


def _shown(results: StudyResults) -> tuple[str, str]:
    """The arm that is asked about, and the baseline."""
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
    return forest_plot(labels, panels, arm_titles(plan)[results.baseline]) if panels else ""


def _dots(plan: Plan, results: StudyResults) -> str:
    chosen = [result for result in results.arms[0].endpoints if result.is_primary]
    titles = [Endpoint(result.endpoint).full_title for result in chosen]
    effects = [result.effect for result in chosen]
    return seed_dots(titles, effects, arm_titles(plan)[results.baseline]) if any(effects) else ""


def _effects_forests(plan: Plan, results: StudyResults) -> dict[str, str]:
    """By phase: every arm, main effect and interaction on every primary endpoint."""
    titles = arm_titles(plan)
    labels = [titles[arm.arm] for arm in results.arms]
    labels += [f"{'effect of ' if len(f.factors) == 1 else ''}{effect_title(f.factors)}" for f in results.factorial]
    singles = sum(len(found.factors) == 1 for found in results.factorial)
    rules = (len(results.arms), len(results.arms) + singles) if results.factorial else ()
    plots = {}
    for phase, phase_title in PHASE_TITLES.items():
        endpoints = [e for e in map(Endpoint, plan.endpoints.primary) if e.phase == phase]
        panels = [_effects_panel(results, endpoint) for endpoint in endpoints]
        if any(any(panel.effects) for panel in panels):
            plots[phase_title] = forest_plot(labels, panels, titles[results.baseline], rules)
    return plots


def _effects_panel(results: StudyResults, endpoint: Endpoint) -> ForestPanel:
    arms = [next(r.effect for r in arm.endpoints if r.endpoint == endpoint.name) for arm in results.arms]
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
    return interaction_plot(panels, arm_titles(plan)[plan.baseline]) if panels else ""


def _curves(plan: Plan, ledger: Ledger, results: StudyResults) -> list[tuple[str, str, str]]:
    """Name of a stage, its plot, and a sentence on how flat the curves have become."""
    titles = arm_titles(plan)
    found = []
    for stage in stage_names(plan):
        rows = [row for row in ledger.rows if row.stage == stage and row.curve]
        if rows:
            falls = [(titles[arm], late_fall(rows, arm)) for arm in _shown(results)]
            found.append((stage, validation_curves(rows, _shown(results), titles), _late_fall_in_words(falls)))
    return found


def _late_fall_in_words(falls: Sequence[tuple[str, float | None]]) -> str:
    told = [f"{fall:.1f} % ({title})" for title, fall in falls if fall is not None]
    return f"Over the last quarter of the steps the CoCa loss fell by {' and '.join(told)}." if told else ""
