"""The page of a study: `report.html`, with everything in it."""

from pathlib import Path

from grr_coca.study.ledger import Ledger
from grr_coca.study.page import render_page
from grr_coca.study.plan.plan import Plan
from grr_coca.study.report.answer import answer
from grr_coca.study.report.examples import example_captions
from grr_coca.study.report.figures.all import main_and_baseline, study_figures
from grr_coca.study.report.numbers.results import StudyResults
from grr_coca.study.report.tables import arms_tables, cost_table, endpoint_table, factorial_tables
from grr_coca.study.report.tuning import tuning_table
from grr_coca.study.report.words import arm_titles


def study_page(plan: Plan, ledger: Ledger, results: StudyResults, folder: Path) -> str:
    """The HTML of a study's report; nothing in it is loaded from elsewhere.

    Args:
        plan: of the study.
        ledger: its rows.
        results: what they amount to.
        folder: of the study, which may hold pictures of the showcase.
    """
    return render_page(
        "grr_coca.study.report",
        "study.html.j2",
        plan=plan,
        results=results,
        answer=answer(plan, results),
        titles=arm_titles(plan),
        primary=endpoint_table(plan, results, primary=True),
        secondary=endpoint_table(plan, results, primary=False),
        figures=study_figures(plan, ledger, results),
        arms=arms_tables(plan, results) if len(results.begun_arms) > 1 else [],
        factorial=factorial_tables(plan, results),
        cost=cost_table(plan, results) if results.costs else None,
        tuning=tuning_table(plan, ledger) if ledger.trials else None,
        examples=example_captions(plan, ledger.rows, main_and_baseline(results), folder),
    )
