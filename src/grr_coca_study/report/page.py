"""Write the report of a study: `results.json`, `report.md` with its figures, and the same report as an HTML page."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.files import read_json, write_bytes_atomic
from grr_coca.evaluate.table import Row, format_table
from grr_coca_study.html_page import escape_markdown, html_page, markdown_picture, markdown_table
from grr_coca_study.ledger import Ledger, cost, read_ledger
from grr_coca_study.plan import (
    Plan,
    plan_of_folder,
    point_title,
    search_seeds,
    showcase_of,
    split_endpoint,
    stage_names,
    with_baseline,
)
from grr_coca_study.report.answer import answer, arm_titles
from grr_coca_study.report.endpoints import PHASES, Interval, lower_is_better, metric_title, title
from grr_coca_study.report.figures import Panel, forest_plot, learning_curves
from grr_coca_study.report.numbers import EndpointResult, StudyResults, split_rows, study_results
from grr_coca_study.rows import LedgerRow
from grr_coca_study.statistics import Effect
from grr_coca_study.thumbnails import EXHIBITS, LISTING, thumbnail_path

RESULTS_FILE, REPORT_FILE, PAGE_FILE = "results.json", "report.md", "report.html"
FIGURES = "figures"


def write_study_report(folder: Path, out: Path, over: str | None = None) -> str:
    """Write the report of a study, which is based only on the files in the study's folder.

    Args:
        folder: Folder of the study.
        out: Existing folder for the files.
        over: Arm with which the others are compared. None means the plan's baseline.

    Returns:
        The answer, the table of endpoints, the missing stages and the notes, as text for a terminal.

    Raises:
        UserError: If the folder is not a study, its plan or ledger is invalid, or the plan has no arm `over`.
        OSError: If a file cannot be written.
    """
    planned = plan_of_folder(folder)
    plan = with_baseline(planned, over)
    ledger = read_ledger(folder, plan)
    results, splits = study_results(plan, ledger), split_rows(plan, ledger)
    if plan.baseline != planned.baseline:
        note = (
            f"the arms are compared with {plan.baseline}; the plan names {planned.baseline} as the baseline. p values "
            "are corrected for the endpoints of one comparison, not for several comparisons"
        )
        results = replace(results, notes=(*results.notes, note))
    plain = to_dict(results) | {"splits": [_row_to_json(each) for each in splits]}
    write_bytes_atomic(
        out / RESULTS_FILE, _to_utf8(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    )
    answered, page = answer(plan, results), _Page(out, arm_titles(plan))
    page.add(f"# {escape_markdown(answered.question)}", f"**{escape_markdown(answered.headline)}.**")
    if not results.is_complete:
        page.add(
            f"**Not finished:** {results.num_rows} of {results.num_planned_rows} stages are done; {results.num_seeds} "
            f"of {results.num_planned_seeds} seeds have all stages of the two arms. The results will change."
        )
    page.add_list(answered.cautions)
    endpoints = _add_endpoints(page, results)
    if len(results.begun_arms) > 1:
        _add_arms(page, plan, results)
    if splits:
        page.add("## Every split", f"```\n{format_table(splits, results.pair)}\n```")
    _add_curves(page, plan, ledger, results)
    _add_costs(page, results)
    if ledger.tried:
        _add_settings(page, plan, ledger)
    for stage in stage_names(plan):
        _add_captions(page, plan, [row for row in ledger.rows if row.stage == stage], results.pair, folder)
    if (folder / EXHIBITS / LISTING).is_file():
        _add_exhibits(page, plan, folder / EXHIBITS)
    page.add(resources.files("grr_coca_study.report").joinpath("reading.md").read_text("utf-8"))
    for heading, lines in (("Missing", results.missing), ("Notes", results.notes)):
        if lines:
            page.add(f"## {heading}")
            page.add_list(lines)
    page.write(answered.question)
    unfinished = [f"not finished: {results.num_rows} of {results.num_planned_rows} stages are done; missing:"]
    unfinished += [f"  {line}" for line in results.missing]
    head = [answered.question, f"{answered.headline}.", "", *answered.cautions, endpoints]
    return "\n".join([*head, *([] if results.is_complete else unfinished), *results.notes])


class _Page:
    """Report that is collected part by part: its Markdown, and its pictures by address.

    Args:
        out: Existing folder in which the report is written.
        titles: Display names of the arms.
    """

    def __init__(self, out: Path, titles: Mapping[str, str]) -> None:
        self.titles = titles
        self._out = out
        self._parts: list[str] = []
        self._pictures: dict[str, str | bytes] = {}

    def add(self, *parts: str) -> None:
        """Add headings, paragraphs or tables."""
        self._parts += parts

    def add_list(self, lines: Sequence[str]) -> None:
        """Add lines as a list, if there are any."""
        if lines:
            self.add("\n".join(f"- {escape_markdown(line)}" for line in lines))

    def add_table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        """Add a table of numbers, omitting empty columns such as the intervals of a single seed."""
        shown = [number for number, cells in enumerate(zip(*rows, strict=True)) if {*cells} != {"–"}]
        table = markdown_table([heads[i] for i in shown], [[row[i] for i in shown] for row in rows], of_numbers=True)
        self.add(table)
        return table

    def add_figure(self, alt: str, name: str, svg: str) -> None:
        """Add a figure, unless it is empty."""
        if svg:
            address = f"{FIGURES}/{name}.svg"
            self._pictures[address] = svg
            self.add(markdown_picture(alt, address))

    def thumbnail(self, path: Path, alt: str) -> str:
        """Return Markdown that shows a thumbnail, or the text `alt` if the thumbnail does not exist.

        The page embeds the thumbnail, and `report.md` refers to its file.
        """
        if not path.is_file():
            return escape_markdown(alt)
        address = Path(os.path.relpath(path, self._out)).as_posix()
        self._pictures[address] = path.read_bytes()
        return markdown_picture(alt, address)

    def write(self, question: str) -> None:
        """Write the report as Markdown with its figures, and as HTML with embedded pictures and a title."""
        text = "\n\n".join(part.strip("\n") for part in self._parts) + "\n"
        (self._out / FIGURES).mkdir(exist_ok=True)
        for address, picture in self._pictures.items():
            if isinstance(picture, str):
                write_bytes_atomic(self._out / address, _to_utf8(picture))
        write_bytes_atomic(self._out / REPORT_FILE, _to_utf8(text))
        write_bytes_atomic(self._out / PAGE_FILE, _to_utf8(html_page(question, text, self._pictures)))


# --- Endpoints


def _add_endpoints(page: _Page, results: StudyResults) -> str:
    """Add a table and a plot that compare the endpoints of the first arm and the baseline, and return the table."""
    endpoints, (arm, baseline) = results.arms[0].endpoints, (page.titles[name] for name in results.pair)
    heads = ["endpoint", arm, baseline, "change, %", "95 % interval", "over images", "over both", "seeds", "p"]
    heads += ["p, corrected", "verdict", "minimum detectable effect, %"]
    page.add(f"## Endpoints on the split {escape_markdown(results.split)}")
    table = page.add_table(heads, [_endpoint_cells(result) for result in endpoints])
    panels = [
        Panel(name, [r.effect if lower_is_better(r.endpoint) is lower else None for r in endpoints], lower)
        for name, lower in (("losses", True), ("recall, captions", False))
    ]
    labels = [title(result.endpoint) for result in endpoints]
    page.add_figure("Change of each endpoint", "endpoints", forest_plot(labels, panels, f"change over {baseline}"))
    return table


def _endpoint_cells(result: EndpointResult) -> list[str]:
    effect = result.effect
    return [
        title(result.endpoint),
        *("–" if value is None else f"{value:.4g}" for value in (result.arm_value, result.baseline_value)),
        format_change(effect.change) if effect else "–",
        *map(_format_interval, (effect.interval if effect else None, result.over_images, result.over_both)),
        str(result.num_seeds),
        format_p(effect.p_t if effect else None),
        format_p(result.p_holm),
        result.verdict if result.is_primary else "–",
        "–" if result.smallest_shown is None else f"{result.smallest_shown:.1f}",
    ]


def _add_arms(page: _Page, plan: Plan, results: StudyResults) -> None:
    """Add a table and plots that compare the primary endpoints of all arms with those of the baseline."""
    arms, over = results.begun_arms, f"change over {page.titles[results.baseline]}"
    page.add(f"## Every arm, {escape_markdown(over)} in %")
    page.add_table(
        ["arm", *map(title, plan.endpoints.primary)],
        [
            [page.titles[arm.arm], *(_effect_cell(r.effect, r.verdict in ("better", "worse")) for r in arm.primary)]
            for arm in arms
        ],
    )
    for phase, when in PHASES.items():
        panels = [
            Panel(metric_title(name), [arm.primary[number].effect for arm in arms], lower_is_better(name))
            for number, name in enumerate(plan.endpoints.primary)
            if split_endpoint(name)[0] == phase
        ]
        plot = forest_plot([page.titles[arm.arm] for arm in arms], panels, f"{over} {when}")
        page.add_figure(f"Change of every arm {when}", f"arms-{phase}", plot)


# --- Curves, cost, settings


def _add_curves(page: _Page, plan: Plan, ledger: Ledger, results: StudyResults) -> None:
    stages = {stage: [r for r in ledger.rows if r.stage == stage and r.curve] for stage in stage_names(plan)}
    if any(stages.values()):
        page.add("## Learning curves")
    for stage, rows in stages.items():
        if rows:
            page.add(f"### {stage}")
            plot = learning_curves(rows, {arm: page.titles[arm] for arm in results.pair})
            page.add_figure(f"Validation losses of {stage} by step", f"curves-{stage}", plot)


def _add_costs(page: _Page, results: StudyResults) -> None:
    if results.costs:
        page.add("## Cost")
        page.add_table(
            ["arm", "parameters", "image encoder parameters", "MFLOP per pair", "training TFLOP", "seconds"],
            [
                [
                    page.titles[cost.arm],
                    f"{cost.parameters:,}",
                    f"{cost.image_encoder_parameters:,}",
                    f"{cost.flops_per_pair / 1e6:,.1f}",
                    f"{sum(cost.training_flops.values()) / 1e12:,.2f}",
                    f"{sum(cost.seconds.values()):,.0f}",
                ]
                for cost in results.costs
            ],
        )
    named = {"Machines": results.machines, "Precision": results.precisions, "Code": results.commits}
    page.add(*(f"{name}: {escape_markdown('; '.join(items))}." for name, items in named.items() if items))


def _add_settings(page: _Page, plan: Plan, ledger: Ledger) -> None:
    """Add a table of the CoCa loss on `val` at every grid point, by stage and settings, for each arm.

    Marks show the best points, and whether they are at an end of the grid.
    """
    costs: dict[tuple[str, str], dict[str, list[float]]] = {}
    for tried in ledger.tried:
        of_point = costs.setdefault((tried.stage, point_title(tried.settings)), {})
        of_point.setdefault(tried.arm, []).append(cost(tried))
    arms = [arm.name for arm in plan.arms if any(arm.name in by_arm for by_arm in costs.values())]
    rows = []
    for (stage, point), by_arm in costs.items():
        losses = [float(np.exp(np.mean(by_arm[arm]))) if arm in by_arm else math.nan for arm in arms]
        cells = ["–" if math.isnan(loss) else "diverged" if math.isinf(loss) else f"{loss:#.4g}" for loss in losses]
        marks = [_mark(ledger, arm, stage, point) for arm in arms]
        rows.append([stage, point, *(cell + mark for cell, mark in zip(cells, marks, strict=True))])
    page.add(f"## Settings: CoCa loss on val, seeds {', '.join(map(str, search_seeds(plan)))}")
    page.add_table(["stage", "settings", *(page.titles[arm] for arm in arms)], rows)


def _mark(ledger: Ledger, arm: str, stage: str, point: str) -> str:
    """Return the text after the loss of a point: `, best` for the best point of an arm in a stage, and otherwise empty.

    `, at an end` is added if one of the point's values is the smallest or largest of at least three tried numbers.
    """
    best = ledger.chosen.get((arm, stage), {})
    if point != point_title(best):
        return ""
    for key, value in best.items():
        tried = {row.settings.get(key) for row in ledger.tried if (row.arm, row.stage) == (arm, stage)}
        numbers = {number for number in tried if isinstance(number, int | float)}
        if len(numbers) > 2 and value in (min(numbers), max(numbers)):
            return ", best, at an end"
    return ", best"


# --- Captions, heat maps, searches


def _add_captions(page: _Page, plan: Plan, rows: Sequence[LedgerRow], pair: tuple[str, str], folder: Path) -> None:
    """Add the captions of the first arm and the baseline side by side, for the first common seed.

    Nothing is added if no seed has captions of both arms.

    Args:
        page: Page to add to.
        plan: Plan of the study.
        rows: Rows of one stage.
        pair: Names of the first arm and of the baseline.
        folder: Folder of the study, which contains the thumbnails.
    """
    captions_of = {(row.arm, row.seed): {one.image: one for one in row.captions} for row in rows if row.captions}
    seeds = [seed for seed in plan.seeds if all((arm, seed) in captions_of for arm in pair)]
    if not seeds:
        return
    stage, (first, second) = rows[0].stage, (captions_of[arm, seeds[0]] for arm in pair)
    lines = [
        [
            page.thumbnail(thumbnail_path(folder, stage, image), image),
            escape_markdown(" / ".join(one.references)),
            escape_markdown(one.caption),
            escape_markdown(second[image].caption),
        ]
        for image, one in first.items()
        if image in second
    ]
    page.add(
        f"## Captions: {stage}, split {showcase_of(plan, stage)[0]}, seed {seeds[0]}",
        markdown_table(["image", "reference captions", *(escape_markdown(page.titles[arm]) for arm in pair)], lines),
    )


def _add_exhibits(page: _Page, plan: Plan, pictures: Path) -> None:
    """Add the heat maps and searches of a demo. `pictures` is the folder that contains them and their listing."""
    shown = read_json(pictures / LISTING)
    page.add(
        "## Where the models look",
        "For each word of a model's caption, a map shows how much each image patch contributes to the word, from white "
        "to red for the patch that contributes most. A contribution is the attention to the patch times the gradient "
        "of the word's logit.",
    )
    for maps in zip(*(exhibits["heat_maps"] for exhibits in shown.values()), strict=True):
        page.add(f"### {escape_markdown(maps[0]['truth'])}")
        for arm, found in zip(shown, maps, strict=True):
            image = page.thumbnail(pictures / found["picture"], f"where {arm} looks")
            page.add(f"{escape_markdown(page.titles[arm])}: {image}")
    page.add(f"## Search: text → images of {escape_markdown(plan.showcase)}")
    for searches in zip(*(exhibits["searches"] for exhibits in shown.values()), strict=True):
        lines = [
            [
                escape_markdown(page.titles[arm]),
                " ".join(page.thumbnail(pictures / hit["picture"], hit["caption"]) for hit in found["hits"]),
            ]
            for arm, found in zip(shown, searches, strict=True)
        ]
        page.add(markdown_table((escape_markdown(searches[0]["query"]), "images found"), lines))


# --- Numbers in words


def format_change(percent: float) -> str:
    """Return a change in per cent with its sign, such as `−2.4`."""
    rounded = round(percent, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"  # avoids −0.0


def format_p(p: float | None) -> str:
    """Return a p value with three decimal places, `< 0.001` for smaller values, or a dash for None."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _format_interval(interval: Interval | None) -> str:
    """Return the ends of an interval as `−3.5 to −1.2`, or a dash for None."""
    return "–" if interval is None else " to ".join(map(format_change, interval))


def _effect_cell(effect: Effect | None, is_starred: bool = False) -> str:
    """Return an effect in per cent as `−1.8 (−2.3 to −1.2)*`, or a dash for None. The star depends on `is_starred`."""
    if effect is None:
        return "–"
    return (
        format_change(effect.change)
        + (f" ({_format_interval(effect.interval)})" if effect.interval else "")
        + "*" * is_starred
    )


def _row_to_json(row: Row) -> dict[str, object]:
    """Convert a row to JSON, with null for missing measurements."""
    sides = {"model": row.model, "baseline": row.baseline}
    known = {side: {name: None if math.isnan(x) else x for name, x in found.items()} for side, found in sides.items()}
    return {"split": row.name, **known}


def _to_utf8(text: str) -> bytes:
    """Encode a text as UTF-8, with escapes for the lone surrogates in file names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace")
