"""Write what a study says: `results.json`, `table.md` and `report.html`."""

import json
from dataclasses import replace
from pathlib import Path

from grr_coca.files import write_whole
from grr_coca.structure import to_dict
from grr_coca.study.ledger import read_ledger
from grr_coca.study.plan.folder import plan_of_folder
from grr_coca.study.plan.plan import Plan, compared_with
from grr_coca.study.report.answer import answer
from grr_coca.study.report.numbers.results import StudyResults, study_results
from grr_coca.study.report.page import study_page
from grr_coca.study.report.tables import Table, arms_tables, as_markdown, cost_table, endpoint_table, factorial_tables

RESULTS_FILE = "results.json"
TABLE_FILE = "table.md"
PAGE_FILE = "report.html"


def write_study_report(folder: Path, out: Path, over: str | None = None) -> str:
    """Report on the study in a folder, from its plan and ledger alone.

    Args:
        folder: of the study.
        out: a folder that is there; three files are written to it.
        over: the arm that the others are compared with; None: the plan's baseline.

    Returns:
        The answer and the table of primary endpoints, for a terminal.

    Raises:
        UserError: the folder holds no study, its plan or ledger cannot be read, or it has no arm `over`.
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
    content = json.dumps(to_dict(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(out / RESULTS_FILE, _encoded(content))
    write_whole(out / TABLE_FILE, _encoded(study_tables(plan, results)))
    write_whole(out / PAGE_FILE, _encoded(study_page(plan, ledger, results, folder)))
    return _for_terminal(plan, results)


def study_tables(plan: Plan, results: StudyResults) -> str:
    """The answer and all tables as Markdown."""
    found = answer(plan, results)
    tables = [endpoint_table(plan, results, primary=True), endpoint_table(plan, results, primary=False)]
    tables += arms_tables(plan, results) if len(results.begun_arms) > 1 else []
    tables += [*factorial_tables(plan, results), cost_table(plan, results)]
    answered = "\n".join(f"- {sentence}" for sentence in found.sentences)
    sections = [f"# {found.question}\n\n**{found.headline}.**\n\n{answered}\n", *map(_section, tables)]
    if results.missing:
        sections.append("## Missing\n\n" + "\n".join(f"- {line}" for line in results.missing) + "\n")
    if results.notes:
        sections.append("## Notes on the ledger\n\n" + "\n".join(f"- {note}" for note in results.notes) + "\n")
    return "\n".join(sections)


def _section(table: Table) -> str:
    return f"## {table.title}\n\n{as_markdown(table)}\n{table.note}\n"


def _encoded(text: str) -> bytes:
    """An image's name that is not UTF-8 holds lone surrogates; they are shown as escapes."""
    return text.encode("utf-8", "backslashreplace")


def _for_terminal(plan: Plan, results: StudyResults) -> str:
    found = answer(plan, results)
    lines = [found.question, f"{found.headline}.", "", *found.sentences, ""]
    lines.append(as_markdown(endpoint_table(plan, results, primary=True)))
    if not results.is_complete:
        lines.append(f"not finished: {results.num_rows} of {results.num_planned_rows} stages are done; missing:")
        lines += [f"  {line}" for line in results.missing]
    return "\n".join([*lines, *results.notes])
