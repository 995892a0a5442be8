"""Writes the report of a study: `results.json`, and `report.md` with its figures, also as a page in HTML."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.files import read_json, write_whole
from grr_coca.evaluate.table import Row
from grr_coca.study.html_page import escaped, html_page, markdown_picture, markdown_table
from grr_coca.study.ledger import Ledger, read_ledger
from grr_coca.study.plan import Plan, compared_with, plan_of_folder, showcase_of, stage_names
from grr_coca.study.report.figures import main_and_baseline, study_figures
from grr_coca.study.report.grid import (
    GridResults,
    grid_as_plain,
    grid_figure,
    grid_results,
    grid_tables,
    with_choice_drawn,
)
from grr_coca.study.report.numbers import PHASE_TITLES, StudyResults, study_results
from grr_coca.study.report.tables import (
    Table,
    arms_tables,
    as_markdown,
    cost_table,
    endpoint_table,
    settings_table,
    split_rows,
    splits_table,
)
from grr_coca.study.report.verdict import Answer, answer, arm_titles
from grr_coca.study.rows import LedgerRow
from grr_coca.study.thumbnails import EXHIBITS, LISTING, thumbnail_path

RESULTS_FILE, REPORT_FILE, PAGE_FILE = "results.json", "report.md", "report.html"
FIGURES = "figures"


def write_study_report(folder: Path, out: Path, over: str | None = None) -> str:
    """Report on a study from its plan and ledger alone.

    Args:
        folder: folder of the study.
        out: an existing folder, to which the files are written.
        over: the arm with which the others are compared; None: the plan's baseline.

    Returns:
        The answer and the table of primary endpoints, for a terminal.

    Raises:
        UserError: the folder is not a study, its plan or ledger is invalid, or the plan has no arm `over`.
    """
    planned = plan_of_folder(folder)
    plan = compared_with(planned, over)
    ledger = read_ledger(folder, plan)
    results = with_choice_drawn(plan, ledger, study_results(plan, ledger))
    if plan.baseline != planned.baseline:
        note = (
            f"compared with {plan.baseline}; the plan names {planned.baseline} as the baseline. p values are corrected "
            "for the endpoints of one comparison, not for several comparisons"
        )
        results = replace(results, notes=(*results.notes, note))
    grids = grid_results(plan, ledger)
    splits = split_rows(plan, ledger, results)
    plain = to_dict(results) | {"splits": [_plain_row(each) for each in splits]}
    if grids:
        plain["grids"] = [grid_as_plain(found) for found in grids]
    write_whole(out / RESULTS_FILE, _encoded(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"))
    answered = answer(plan, results)
    report = _Report(answered, results)
    drawn = study_figures(plan, ledger, results)
    _add_answer(report, plan, grids, drawn)
    if splits:
        report.add_table(splits_table(plan, splits, results))
    _add_curves(report, drawn)
    _add_rest(report, plan, ledger)
    _add_captions(report, plan, ledger.rows, folder, out)
    _add_exhibits(report, plan, folder, out)
    _add_notes(report)
    (out / FIGURES).mkdir(exist_ok=True)
    for name, svg in report.figures.items():
        write_whole(out / name, _encoded(svg))
    write_whole(out / REPORT_FILE, _encoded(report.text))
    write_whole(out / PAGE_FILE, _encoded(html_page(answered.question, report.text, report.pictures)))
    return _for_terminal(plan, results, answered)


class _Report:
    """The report as Markdown, section by section, with its pictures by their addresses."""

    def __init__(self, answered: Answer, results: StudyResults) -> None:
        self.results = results
        self.figures: dict[str, str] = {}
        self.pictures: dict[str, str | bytes] = {}
        self._parts = [f"# {escaped(answered.question)}\n\n**{escaped(answered.headline)}.**\n"]
        if not results.is_complete:
            self._parts.append(
                f"**Not finished:** {results.num_rows} of {results.num_planned_rows} stages are done; "
                f"{results.num_seeds} of {results.num_planned_seeds} seeds have all stages of the two arms. Numbers "
                "will change.\n"
            )
        if answered.cautions:
            self._parts.append("".join(f"- {escaped(caution)}\n" for caution in answered.cautions))

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self._parts)

    def add(self, *parts: str) -> None:
        """Add paragraphs, headings or tables."""
        self._parts += parts

    def add_table(self, table: Table, level: str = "##") -> None:
        """Add a table with its title and note."""
        self.add(f"{level} {escaped(table.title)}\n", as_markdown(table), *([f"{table.note}\n"] if table.note else []))

    def add_figure(self, alt: str, name: str, svg: str | None) -> None:
        """Add a figure, if there is one."""
        if svg:
            address = f"{FIGURES}/{name}.svg"
            self.figures[address] = self.pictures[address] = svg
            self.add(f"{markdown_picture(alt, address)}\n")


def _add_answer(report: _Report, plan: Plan, grids: Sequence[GridResults], drawn: Mapping[str, str]) -> None:
    """Each arm with a grid over the baseline, and the endpoints of the first arm, at its best points."""
    results = report.results
    for number, found in enumerate(grids):
        report.add(f"## {escaped(found.model.title)} at its best settings\n")
        report.add_figure("Losses by settings, and the change at each", f"grid-{number}", grid_figure(found))
        for table in grid_tables(found):
            report.add_table(table, "###")
    for kind in ("primary", "secondary"):
        table = endpoint_table(plan, results, primary=kind == "primary")
        if table.rows:
            report.add_table(table)
            report.add_figure(f"Change of each {kind} endpoint with its interval", kind, drawn.get(kind))
    if len(results.begun_arms) > 1:
        for (phase, _), table in zip(_phases(plan), arms_tables(plan, results), strict=True):
            report.add_table(table)
            report.add_figure("Change of every arm with its interval", f"arms-{phase}", drawn.get(f"arms-{phase}"))


def _add_curves(report: _Report, drawn: Mapping[str, str]) -> None:
    curves = {name: svg for name, svg in drawn.items() if name.startswith("curves-")}
    if curves:
        report.add("## Learning curves\n", "Losses on `val`. Lines are means over seeds, bands their range.\n")
    for name, svg in curves.items():
        report.add_figure(f"Validation losses of {name.removeprefix('curves-')} by step", name, svg)


def _phases(plan: Plan) -> list[tuple[str, str]]:
    """The phases of the primary endpoints, in the order of `arms_tables`."""
    phases = dict.fromkeys(name.partition("/")[0] for name in plan.endpoints.primary)
    return [(phase, PHASE_TITLES[phase]) for phase in phases]


def _add_rest(report: _Report, plan: Plan, ledger: Ledger) -> None:
    """Cost, machines and grids."""
    results = report.results
    if results.costs:
        report.add_table(cost_table(plan, results))
    for title, items in (
        ("Machines", results.machines),
        ("Precision", results.precisions),
        ("Code", results.commits),
    ):
        if items:
            report.add(f"{title}: {escaped('; '.join(items))}.\n")
    if ledger.tried and (plan.tuning is not None or any(arm.finetune_grid for arm in plan.arms)):
        report.add_table(settings_table(plan, ledger))


def _add_captions(report: _Report, plan: Plan, rows: Sequence[LedgerRow], folder: Path, out: Path) -> None:
    """Captions of the arms side by side, for each stage, all of one seed.

    It is the first seed for which most of the first arm and the baseline have some. Thumbnails lie in the study's
    folder, if it has them.
    """
    titles = arm_titles(plan)
    for stage in stage_names(plan):
        found = {(row.arm, row.seed): row.captions for row in rows if row.captions and row.stage == stage}
        both = main_and_baseline(report.results)
        seeds = sorted({seed for arm, seed in found if arm in both})
        if not seeds:
            continue
        seed = max(seeds, key=lambda seed: (sum((arm, seed) in found for arm in both), -seed))
        said = {arm: {one.image: one.caption for one in found[arm, seed]} for arm in both if (arm, seed) in found}
        lines = []
        for example in found[next(iter(said)), seed]:
            if all(example.image in captions for captions in said.values()):
                shown = _thumbnail(report, thumbnail_path(folder, stage, example.image), example.image, out)
                captions = [escaped(captions[example.image]) for captions in said.values()]
                lines.append([shown, escaped(" / ".join(example.references)), *captions])
        heads = ("image", "people say", *(escaped(titles[arm]) for arm in said))
        report.add(
            f"## Captions: {stage}, split {showcase_of(plan, stage)[0]}, seed {seed}\n",
            "Images drawn at random, the same for all seeds and arms; greedy captions.\n",
            markdown_table(heads, lines),
        )


def _thumbnail(report: _Report, path: Path, name: str, out: Path) -> str:
    """The thumbnail of an image in Markdown, or its name if there is none."""
    if not path.is_file():
        return escaped(name)
    address = Path(os.path.relpath(path, out)).as_posix()
    report.pictures[address] = path.read_bytes()
    return markdown_picture(name, address)


def _plain_row(row: Row) -> dict[str, object]:
    """A row for JSON; null for what was not measured."""

    def known(numbers: Mapping[str, float]) -> dict[str, float | None]:
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}

    return {"split": row.name, "model": known(row.model), "baseline": known(row.baseline)}


def _add_exhibits(report: _Report, plan: Plan, folder: Path, out: Path) -> None:
    """Heat maps and searches of a demo, if its folder has them."""
    listing = folder / EXHIBITS / LISTING
    if not listing.is_file():
        return
    shown, titles = read_json(listing), arm_titles(plan)

    def shown_picture(alt: str, name: str) -> str:
        return _thumbnail(report, folder / EXHIBITS / name, alt, out)

    report.add(
        "## Where the models look\n",
        "For each word of a model's caption, how much each patch of the image counts for it: from white to red, up to "
        "the patch that counts most. Attention to the patches times the gradient of the word's logit.\n",
    )
    for number, first in enumerate(next(iter(shown.values()))["heat_maps"]):
        report.add(f"### {escaped(first['truth'])}\n")
        for arm, exhibits in shown.items():
            image = shown_picture(f"where {arm} looks", exhibits["heat_maps"][number]["picture"])
            report.add(f"{escaped(titles[arm])}: {image}\n")
    report.add(f"## Search: text → images of {escaped(plan.showcase)}\n")
    for number, first in enumerate(next(iter(shown.values()))["searches"]):
        lines = [
            [
                escaped(titles[arm]),
                " ".join(shown_picture(hit["caption"], hit["picture"]) for hit in exhibits["searches"][number]["hits"]),
            ]
            for arm, exhibits in shown.items()
        ]
        report.add(markdown_table((escaped(first["query"]), "images found"), lines))


def _add_notes(report: _Report) -> None:
    results = report.results
    finetuned = f" Of fine-tuning it is the mean over {', '.join(results.stages[1:])}." if results.stages[1:] else ""
    report.add(
        "## How it was worked out\n",
        f"- Arms are compared seed by seed: the log ratio to {escaped(results.baseline)}, as a change in per cent."
        f"{finetuned}\n"
        "- Intervals are 95 % t intervals over seeds, each of one endpoint by itself. They speak of other seeds with "
        "the same data, not of other data.\n"
        "- Better or worse is said only of primary endpoints, and only if the t test over seeds passes Holm's "
        "correction at 5 %. Equal: it does not, with seeds enough for a verdict, and the interval lies within ±2 %. "
        "Where the best settings are chosen with the same seeds, the interval in which each draw of seeds chooses its "
        "settings must exclude zero too.\n",
    )
    for title, lines in (("Missing", results.missing), ("Notes on the ledger", results.notes)):
        if lines:
            report.add(f"## {title}\n", "".join(f"- {escaped(line)}\n" for line in lines))


def _encoded(text: str) -> bytes:
    """Encode as UTF-8, with escapes for the lone surrogates of file names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace")


def _for_terminal(plan: Plan, results: StudyResults, answered: Answer) -> str:
    lines = [answered.question, f"{answered.headline}.", "", *answered.cautions]
    lines.append(as_markdown(endpoint_table(plan, results, primary=True)))
    if not results.is_complete:
        lines.append(f"not finished: {results.num_rows} of {results.num_planned_rows} stages are done; missing:")
        lines += [f"  {line}" for line in results.missing]
    return "\n".join([*lines, *results.notes])
