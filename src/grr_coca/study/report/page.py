"""Writes the report of a study: `results.json`, `table.md` and `report.html`, a page that loads nothing else."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.files import write_whole
from grr_coca.study.drawing import render_page
from grr_coca.study.ledger import CaptionedExample, Ledger, LedgerRow, read_ledger
from grr_coca.study.plan import Plan, compared_with, plan_of_folder, showcase_of, stage_names
from grr_coca.study.report.answer import Answer, answer, arm_titles
from grr_coca.study.report.figures import main_and_baseline, study_figures
from grr_coca.study.report.numbers import StudyResults, study_results
from grr_coca.study.report.rates import (
    RateResults,
    at_best_rates,
    rate_figure,
    rate_results,
    rate_tables,
    rates_answer,
    rates_as_plain,
)
from grr_coca.study.report.tables import (
    Table,
    arms_tables,
    as_markdown,
    cost_table,
    endpoint_table,
    factorial_tables,
    tuning_table,
)
from grr_coca.study.thumbnails import data_address, thumbnail_path

_RESULTS_FILE = "results.json"
_TABLE_FILE = "table.md"
PAGE_FILE = "report.html"

_OfRates = Sequence[tuple[RateResults, Sequence[Table]]]
"""The results of each model at its best rate, with their tables; empty if the study is not one of rates."""


def write_study_report(folder: Path, out: Path, over: str | None = None) -> str:
    """Report on a study from its plan and ledger alone.

    Args:
        folder: folder of the study.
        out: an existing folder, to which the three files are written.
        over: the arm with which the others are compared; None: the plan's baseline.

    Returns:
        The answer and the table of primary endpoints, for a terminal.

    Raises:
        UserError: the folder is not a study, its plan or ledger is invalid, or the plan has no arm `over`.
    """
    planned = plan_of_folder(folder)
    plan = compared_with(planned, over)
    ledger = read_ledger(folder, seeds=plan.seeds)
    results = study_results(plan, ledger)
    if plan.baseline != planned.baseline:
        note = (
            f"compared with {plan.baseline}; the plan names {planned.baseline} as the baseline. p values are corrected "
            "for the endpoints of one comparison, not for several comparisons"
        )
        results = replace(results, notes=(*results.notes, note))
    rates = rate_results(plan, ledger)
    plain = to_dict(results) | ({"learning_rates": [rates_as_plain(found) for found in rates]} if rates else {})
    content = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(out / _RESULTS_FILE, _encoded(content))
    # Of a study of rates, the first arm over the baseline answers no question.
    answered = rates_answer(plan, rates) if rates else answer(plan, results)
    of_rates = [(found, _rate_tables(plan, ledger, found)) for found in rates]
    write_whole(out / _TABLE_FILE, _encoded(_study_tables(plan, results, answered, of_rates)))
    write_whole(out / PAGE_FILE, _encoded(_study_page(plan, ledger, results, answered, of_rates, folder)))
    return _for_terminal(plan, results, answered, of_rates)


def _study_page(
    plan: Plan, ledger: Ledger, results: StudyResults, answered: Answer, of_rates: _OfRates, folder: Path
) -> str:
    """The HTML of a report, which loads nothing else. Thumbnails are read from the study's folder."""
    return render_page(
        "grr_coca.study.report",
        "study.html.j2",
        plan=plan,
        results=results,
        answer=answered,
        titles=arm_titles(plan),
        primary=endpoint_table(plan, results, primary=True),
        secondary=endpoint_table(plan, results, primary=False),
        figures=study_figures(plan, ledger, results),
        arms=arms_tables(plan, results) if len(results.begun_arms) > 1 else [],
        factorial=factorial_tables(plan, results),
        rates=[(rate_figure(found), tables) for found, tables in of_rates],
        cost=cost_table(plan, results) if results.costs else None,
        tuning=tuning_table(plan, ledger) if ledger.trials else None,
        examples=_example_captions(plan, ledger.rows, main_and_baseline(results), folder),
    )


def _rate_tables(plan: Plan, ledger: Ledger, found: RateResults) -> list[Table]:
    """The tables of a model at its best rate: the answer, the losses by rate, and the secondary endpoints."""
    best = at_best_rates(plan, found)
    secondary = endpoint_table(best, study_results(best, ledger), primary=False)
    named = replace(secondary, title=f"{secondary.title}, each at its best rate")
    return [*rate_tables(found), *([named] if named.rows else [])]


def _study_tables(plan: Plan, results: StudyResults, answered: Answer, of_rates: _OfRates) -> str:
    """The answer and all tables of a study as Markdown."""
    tables = [table for _, of_model in of_rates for table in of_model]
    if not tables:
        tables = [endpoint_table(plan, results, primary=True), endpoint_table(plan, results, primary=False)]
    tables += arms_tables(plan, results) if len(results.begun_arms) > 1 else []
    tables += [*factorial_tables(plan, results), cost_table(plan, results)]
    sentences = "\n".join(f"- {sentence}" for sentence in answered.sentences)
    sections = [f"# {answered.question}\n\n**{answered.headline}.**\n\n{sentences}\n", *map(_section, tables)]
    if results.missing:
        sections.append("## Missing\n\n" + "\n".join(f"- {line}" for line in results.missing) + "\n")
    if results.notes:
        sections.append("## Notes on the ledger\n\n" + "\n".join(f"- {note}" for note in results.notes) + "\n")
    return "\n".join(sections)


def _section(table: Table) -> str:
    return f"## {table.title}\n\n{as_markdown(table)}\n{table.note}\n"


def _encoded(text: str) -> bytes:
    """Encode as UTF-8, with escapes for the lone surrogates of file names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace")


def _for_terminal(plan: Plan, results: StudyResults, answered: Answer, of_rates: _OfRates) -> str:
    lines = [answered.question, f"{answered.headline}.", "", *answered.sentences, ""]
    tables = [of_model[0] for _, of_model in of_rates] or [endpoint_table(plan, results, primary=True)]
    lines += map(as_markdown, tables)
    if not results.is_complete:
        lines.append(f"not finished: {results.num_rows} of {results.num_planned_rows} stages are done; missing:")
        lines += [f"  {line}" for line in results.missing]
    return "\n".join([*lines, *results.notes])


# --- Captions of all arms side by side


@dataclass(frozen=True)
class _ExampleCaptions:
    """An image of the showcase: its reference captions, each arm's caption, and its thumbnail as a data address."""

    image: str
    references: tuple[str, ...]
    captions: tuple[str, ...]
    picture: str | None


@dataclass(frozen=True)
class _ExampleGrid:
    """Captions of some arms on images of a split, all of one stage and seed."""

    stage: str
    split: str
    seed: int
    arms: tuple[str, ...]
    examples: tuple[_ExampleCaptions, ...]


def _example_captions(plan: Plan, rows: Sequence[LedgerRow], arms: Sequence[str], folder: Path) -> list[_ExampleGrid]:
    """The captions to show for each stage, all of one seed.

    It is the first seed for which most of `arms` have some. Thumbnails are read from the study's folder, if it has
    them.
    """
    grids = []
    for stage in stage_names(plan):
        found = {(row.arm, row.seed): row.captions for row in rows if row.captions and row.stage == stage}
        seeds = sorted({seed for arm, seed in found if arm in arms})
        if not seeds:
            continue
        seed = max(seeds, key=lambda seed: (sum((arm, seed) in found for arm in arms), -seed))
        shown = tuple(arm for arm in arms if (arm, seed) in found)
        by_arm = [{example.image: example for example in found[arm, seed]} for arm in shown]
        common = [example for example in found[shown[0], seed] if all(example.image in said for said in by_arm)]
        examples = tuple(_example(example, by_arm, thumbnail_path(folder, stage, example.image)) for example in common)
        grids.append(_ExampleGrid(stage, showcase_of(plan, stage)[0], seed, shown, examples))
    return grids


def _example(first: CaptionedExample, by_arm: Sequence[dict[str, CaptionedExample]], picture: Path) -> _ExampleCaptions:
    captions = tuple(captions[first.image].caption for captions in by_arm)
    address = data_address(picture.read_bytes()) if picture.is_file() else None
    return _ExampleCaptions(first.image, first.references, captions, address)
