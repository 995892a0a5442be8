"""The tables of a study: endpoints, arms, cost and settings."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grr_coca.evaluate.table import LOSSES, Row, average_row, row
from grr_coca.study.html_page import markdown_table
from grr_coca.study.ledger import Ledger, cost
from grr_coca.study.plan import Plan, point_title, search_seeds, stage_names
from grr_coca.study.report.numbers import PHASE_TITLES, Effect, Endpoint, EndpointResult, StudyResults, rows_by_run
from grr_coca.study.report.verdict import (
    VERDICT_TITLES,
    arm_titles,
    ends_in_signs,
    interval_in_signs,
    listed,
    p_in_words,
    signed,
    verdict,
)

_DETECTABLE = (
    "Detectable: the smallest true decrease, or equivalent increase, that would be called better or worse with a power "
    "of 80 %, with as many seeds and the same deviation over seeds."
)


@dataclass(frozen=True)
class Table:
    """A table of text. The first column names the row; `note` explains the numbers."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def as_markdown(table: Table) -> str:
    """The table as Markdown, without columns that say nothing, such as intervals of a single seed."""
    told = [column for column, cells in enumerate(zip(*table.rows, strict=True)) if {*cells} != {"–"}]
    shown = told if table.rows else range(len(table.heads))
    heads, rows = table.heads, table.rows
    return markdown_table([heads[i] for i in shown], [[row[i] for i in shown] for row in rows], of_numbers=True)


def endpoint_table(plan: Plan, results: StudyResults, *, primary: bool) -> Table:
    """The primary or the secondary endpoints of the first arm against the baseline."""
    main, titles = results.arms[0], arm_titles(plan)
    chosen = [result for result in main.endpoints if result.is_primary is primary]
    heads = [
        "endpoint",
        titles[main.arm],
        titles[results.baseline],
        "change, %",
        "95 % interval",
        "over images",
        "over both",
    ]
    heads += ["seeds", "p"]
    rows = [[Endpoint(r.endpoint).full_title, *_values(r), *_change(r), _seeds(r), _p(r)] for r in chosen]
    if primary:
        heads += ["p, corrected", "with the choice drawn", "verdict", "detectable, %"]
        rows = [
            [*row, p_in_words(r.p_holm), ends_in_signs(r.with_choice), VERDICT_TITLES[verdict(r)], _detectable(r)]
            for row, r in zip(rows, chosen, strict=True)
        ]
    note = (
        f"Values: geometric means over seeds, and over all fine-tunings, on the split {results.split}. 95 % interval: "
        "over seeds, for the same images. Over images: for the same trained models, by a bootstrap, which is too "
        "narrow for contrastive and CoCa losses of few batches. Over both: over seeds and images at once. "
    )
    if primary:
        note += f"p: t test over seeds; corrected: by Holm for all primary endpoints of the plan. {_DETECTABLE}"
        if any(r.with_choice for r in chosen):
            note += (
                " With the choice drawn: over seeds, each draw of which chooses the settings; a verdict needs this "
                "interval, too. Endpoints of fine-tuning get none, since it starts from the best points alone."
            )
    else:
        note += "They have no verdict, since no correction covers them."
    return Table("Primary endpoints" if primary else "Secondary endpoints", tuple(heads), _tuples(rows), note)


def arms_tables(plan: Plan, results: StudyResults) -> list[Table]:
    """All arms against the baseline on the primary endpoints, a table for each phase."""
    titles = arm_titles(plan)
    note = (
        f"Change over {titles[results.baseline]} in %, with 95 % interval. Star: the t test passes Holm's "
        "correction for the primary endpoints of this arm."
    )
    tables = []
    for phase, endpoints in _by_phase(plan).items():
        heads = ("arm", "seeds", *(endpoint.title for endpoint in endpoints))
        rows = []
        for arm in results.begun_arms:
            found = [result for e in endpoints for result in arm.endpoints if result.endpoint == e.name]
            cells = [effect_cell(result.effect, verdict(result) in ("better", "worse")) for result in found]
            rows.append((titles[arm.arm], _seed_range(found), *cells))
        tables.append(Table(f"Every arm, {phase}", heads, tuple(rows), note))
    return tables


def split_rows(plan: Plan, ledger: Ledger, results: StudyResults) -> list[Row]:
    """The first arm and the baseline on each test split of each stage, and averaged over the domains of fine-tuning.

    Means over the seeds that both have: geometric of losses, so that their ratio is the change of the other tables.
    """
    rows = rows_by_run(ledger.rows)
    found = {}
    for stage in stage_names(plan):
        pairs = [[rows.get((arm, seed, stage)) for arm in (results.arms[0].arm, plan.baseline)] for seed in plan.seeds]
        both = [(first.metrics, second.metrics) for first, second in pairs if first and second]
        for split in (name for name in (both[0][0] if both else ()) if name != "val"):
            sides = ([metrics[side][split] for metrics in both if split in metrics[side]] for side in (0, 1))
            found[f"{stage}/{split}"] = row(f"{stage}/{split}", *map(_mean_metrics, sides))
    domains = [found[name] for stage in stage_names(plan)[1:] if (name := f"{stage}/{plan.endpoints.split}") in found]
    averaged = [average_row(f"average of {len(domains)} domains", domains)] if len(domains) > 1 else []
    return [*found.values(), *averaged]


def _mean_metrics(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in measured[0] if all(name in metrics for metrics in measured)]
    return {
        name: float(np.exp(np.log([metrics[name] for metrics in measured]).mean()))
        if name in LOSSES and len(measured) > 1
        else float(np.mean([metrics[name] for metrics in measured]))
        for name in names
    }


def splits_table(plan: Plan, rows: Sequence[Row], results: StudyResults) -> Table:
    """The losses and R@1 of the first arm and of the baseline on each split."""
    short = arm_titles(plan)[results.arms[0].arm], arm_titles(plan)[results.baseline]
    heads = ["split"]
    for loss in LOSSES:
        heads += [f"{Endpoint(f'pretraining/{loss}').title}, {short[0]}", short[1], "change"]
    heads += [f"R@1, {short[0]}", short[1], "chance"]
    lines = []
    for each in rows:
        line = [each.name]
        for loss in LOSSES:
            line += [f"{each.model[loss]:.3f}", f"{each.baseline[loss]:.3f}", f"{each.change(loss):+.2%}"]
        line += [f"{each.model['R@1']:.1%}", f"{each.baseline['R@1']:.1%}", f"{each.model['chance']:.2%}"]
        lines.append(tuple("–" if "nan" in cell else cell for cell in line))
    note = (
        "Contrastive losses are means over batches, and grow with their size; near the logarithm of the batch size "
        "they say nothing, and the CoCa loss contains them. R@1: text to image; equal captions count as right answers "
        "of each other. Values are rounded here; the changes are not."
    )
    return Table("Every split", tuple(heads), tuple(lines), note)


def cost_table(plan: Plan, results: StudyResults) -> Table:
    """Parameters, FLOPs and seconds of each arm."""
    titles = arm_titles(plan)
    heads = (
        "arm",
        "parameters",
        "in the image encoder",
        "MFLOP a pair",
        *(f"TFLOP, {stage}" for stage in results.stages),
        *(f"s, {stage}" for stage in results.stages),
    )
    rows = [
        (
            titles[cost.arm],
            f"{cost.parameters:,}",
            f"{cost.image_encoder_parameters:,}",
            f"{cost.flops_per_pair / 1e6:,.1f}",
            *(_tera(cost.training_flops.get(stage)) for stage in results.stages),
            *(f"{cost.seconds[stage]:,.0f}" if stage in cost.seconds else "–" for stage in results.stages),
        )
        for cost in results.costs
    ]
    note = (
        "MFLOP of one forward pass over a pair, with a caption of maximum length. TFLOP of all training steps, with "
        "captions of average length. Seconds of training and evaluation, median over seeds and machines; other "
        "programs may have run at the same time, so do not compare arms by them."
    )
    return Table("Cost", heads, tuple(rows), note)


def settings_table(plan: Plan, ledger: Ledger) -> Table:
    """The CoCa loss on `val` at every point of the grids, by stage and settings, for each arm; marks the best points.

    Geometric means over the seeds by which the best are chosen.
    """
    titles = arm_titles(plan)
    arms = [arm.name for arm in plan.arms if any(tried.arm == arm.name for tried in ledger.tried)]
    costs: dict[tuple[str, str], dict[str, list[float]]] = {}
    for tried in ledger.tried:
        of_point = costs.setdefault((tried.stage, point_title(tried.settings)), {})
        of_point.setdefault(tried.arm, []).append(cost(tried))
    rows = []
    for (stage, point), by_arm in costs.items():
        cells = []
        for arm in arms:
            mean = float(np.mean(by_arm[arm])) if arm in by_arm else math.nan
            told = "–" if math.isnan(mean) else "diverged" if math.isinf(mean) else f"{math.exp(mean):#.4g}"
            is_taken = (arm, stage) in ledger.chosen and point_title(ledger.chosen[arm, stage]) == point
            cells.append(told + (", taken" if is_taken else ""))
        rows.append((stage, point, *cells))
    seeds = search_seeds(plan)
    note = f"CoCa loss on val, seed{'' if len(seeds) == 1 else 's'} {listed([str(seed) for seed in seeds])}."
    if plan.tuning is not None:
        note += " These seeds are not among the plan's, and test splits were not used."
    if at_end := ends_of_grids(plan, ledger):
        note += f" Taken at an end of the grid, so that a better value may lie beyond it: {'; '.join(at_end)}."
    return Table("Settings", ("stage", "settings", *(titles[arm] for arm in arms)), tuple(rows), note)


def ends_of_grids(plan: Plan, ledger: Ledger) -> list[str]:
    """Best values that are the smallest or largest of three or more that were tried, each with its arms."""
    titles = arm_titles(plan)
    arms: dict[str, list[str]] = {}
    for (arm, stage), point in ledger.chosen.items():
        for key, value in point.items():
            tried = [row.settings.get(key) for row in ledger.tried if (row.arm, row.stage) == (arm, stage)]
            numbers = {number for number in tried if isinstance(number, int | float)}
            if len(numbers) > 2 and value in (min(numbers), max(numbers)):
                arms.setdefault(f"{stage}, {point_title({key: value})}", []).append(titles[arm])
    return [f"{what} ({', '.join(names)})" for what, names in arms.items()]


def effect_cell(effect: Effect | None, is_starred: bool = False) -> str:
    """An effect as `−1.8 (−2.3 to −1.2)*`; a dash if there is none."""
    if effect is None:
        return "–"
    interval = "" if effect.low is None else f" ({interval_in_signs(effect)})"
    return f"{signed(effect.change)}{interval}{'*' if is_starred else ''}"


def _tera(flops: int | None) -> str:
    return "–" if flops is None else f"{flops / 1e12:,.2f}"


def _values(result: EndpointResult) -> list[str]:
    return ["–" if value is None else f"{value:.4g}" for value in (result.arm_value, result.baseline_value)]


def _change(result: EndpointResult) -> list[str]:
    return [
        signed(result.effect.change) if result.effect else "–",
        interval_in_signs(result.effect),
        *map(ends_in_signs, (result.over_images, result.over_both)),
    ]


def _seeds(result: EndpointResult) -> str:
    return str(result.effect.num_seeds) if result.effect else "0"


def _p(result: EndpointResult) -> str:
    return p_in_words(result.effect.p_t if result.effect else None)


def _detectable(result: EndpointResult) -> str:
    return "–" if result.smallest_shown is None else f"{result.smallest_shown:.1f}"


def _by_phase(plan: Plan) -> dict[str, list[Endpoint]]:
    """Primary endpoints by the display name of their phase."""
    endpoints: dict[str, list[Endpoint]] = {}
    for endpoint in map(Endpoint, plan.endpoints.primary):
        endpoints.setdefault(PHASE_TITLES[endpoint.phase], []).append(endpoint)
    return endpoints


def _seed_range(results: Sequence[EndpointResult]) -> str:
    return _counts({int(_seeds(result)) for result in results})


def _counts(counts: Collection[int]) -> str:
    """The range of some counts as text, such as `8` or `2 to 8`."""
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def _tuples(rows: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(map(tuple, rows))
