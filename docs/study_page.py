"""Writes what studies found into the pages that tell it: `python docs/study_page.py`. A test holds them to the ledgers.

A place begins with `<!-- study FOLDER PART -->` and ends with `<!-- end -->`; FOLDER holds a study's plan and ledger.
With `PART over ARM`, the others are compared with that arm, and not with the plan's baseline; with `PART of ARM` or
`PART of ARM over ARM`, these two alone are compared. Between `<!-- studies short -->` (or `full`) and
`<!-- end -->`, all studies of GRR-CoCa stand side by side.
Figures are drawn into `docs/study/`, each with the digest of the ledger that it was drawn from.
"""

import re
from collections.abc import Callable
from pathlib import Path

from opened_study import Asked, Study, ledger_digest, open_study
from study_overview import full_overview, overview_figures, overview_folders, short_overview

from grr_coca.study.report.answer import answer, arm_titles, parts_shown, reported_change, signed
from grr_coca.study.report.figures import StudyFigures, late_changes, study_figures
from grr_coca.study.report.numbers import PHASE_TITLES, Endpoint, StudyResults
from grr_coca.study.report.rates import RateResults, rate_figure, rate_results, rate_tables
from grr_coca.study.report.tables import (
    SHOWN_FROM,
    Table,
    arms_tables,
    as_markdown,
    cost_table,
    effect_cell,
    endpoint_table,
    factorial_tables,
    tuning_table,
)
from grr_coca.train.recipe import load_recipe

ROOT = Path(__file__).parents[1]
FIGURES = "docs/study"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PLACE = re.compile(
    r"(?P<begin><!-- study (?P<folder>\S+) (?P<part>\w+)(?: of (?P<arm>\w+))?(?: over (?P<over>\w+))? -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)
OVERVIEW = re.compile(r"(?P<begin><!-- studies (?P<part>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
OVERVIEWS = {"short": short_overview, "full": full_overview}
FIGURE = re.compile(r"\]\((?P<path>(?:docs/)?study/[\w-]+\.svg)\)")
"""A figure of a study as a page shows it."""
LEFT_OUT = ("p, exact", "seeds")
NOT_RUN = "This study has not been run yet.\n"


def published(text: str, root: Path = ROOT, figures: str = "study") -> str:
    """A page with the newest results.

    Args:
        text: of the page.
        root: the folder from which the places name studies.
        figures: where figures lie, seen from the page.
    """

    studies = {asked: open_study(root, asked) for asked in asked_for(text)}

    def filled(place: re.Match[str]) -> str:
        study = studies[_asked_by(place)]
        told = NOT_RUN if study is None else PARTS[place["part"]](study, figures)
        return f"{place['begin']}{told}{place['end']}"

    def side_by_side(place: re.Match[str]) -> str:
        return f"{place['begin']}{OVERVIEWS[place['part']](root, figures)}{place['end']}"

    return OVERVIEW.sub(side_by_side, PLACE.sub(filled, text))


def asked_for(text: str) -> set[Asked]:
    """What the places of a page ask about."""
    return {_asked_by(place) for place in PLACE.finditer(text)}


def _asked_by(place: re.Match[str]) -> Asked:
    return Asked(place["folder"], place["over"], place["arm"])


def draw_figures(root: Path, asked: Asked, out: Path) -> list[Path]:
    """Draw the figures of what is asked about into `out`."""
    study = open_study(root, asked)
    if study is None:
        return []
    figures = _by_name(study.name, study_figures(study.plan, study.ledger, study.results))
    for found in rate_results(study.plan, study.ledger):
        figures[_rates_name(study, found)] = rate_figure(found)
    return _write_marked(figures, [root / asked.folder], out)


def draw_overview(root: Path, out: Path) -> list[Path]:
    """Draw the figures of all studies side by side into `out`."""
    return _write_marked(overview_figures(root), overview_folders(root), out)


def _write_marked(figures: dict[str, str], folders: list[Path], out: Path) -> list[Path]:
    """Write figures by name, each with the digest of its ledgers."""
    out.mkdir(exist_ok=True)
    mark = f"<!-- drawn from the ledger {ledger_digest(folders)} -->"
    for name, svg in figures.items():
        (out / name).write_text(f"{svg.rstrip()}\n{mark}\n", encoding="utf-8")
    return [out / name for name in figures]


def _by_name(study: str, figures: StudyFigures) -> dict[str, str]:
    effects = {f"effects-{phase.replace(' ', '-')}": svg for phase, svg in figures.effects.items()}
    curves = {f"curves-{found.stage}": found.plot for found in figures.curves}
    found = {"endpoints": figures.primary, "seeds": figures.dots, "interaction": figures.interaction}
    return {f"{study}-{name}.svg": svg for name, svg in {**found, **effects, **curves}.items() if svg}


def _setup(study: Study, _figures: str) -> str:
    """Stages with their steps, read from the recipes."""
    plan = study.plan
    rows = []
    for stage, path in zip(study.results.stages, (plan.pretrain, *plan.finetune), strict=True):
        recipe = load_recipe(Path(path))
        steps = plan.steps if plan.steps and path == plan.pretrain else recipe.schedule.steps
        rows.append((stage, f"{steps:,}", str(recipe.data.batch_size), recipe.optimizer.name, recipe.precision))
    table = as_markdown(Table("", ("stage", "steps", "pairs a step", "optimizer", "precision"), tuple(rows)))
    return f"{len(plan.arms)} arms, {len(plan.seeds)} seeds.\n\n{table}"


def _short(study: Study, _figures: str) -> str:
    """For the README: the headline and a small table."""
    found, main = answer(study.plan, study.results), study.results.arms[0]
    headline = f"**{found.headline}.** {_progress(study.results)}\n"
    if not _is_begun(study):
        return headline
    results = {result.endpoint: result for result in main.endpoints if result.is_primary}
    phases = list(dict.fromkeys(Endpoint(name).phase for name in results))
    rows = []
    for metric in dict.fromkeys(Endpoint(name).metric for name in results):
        cells = []
        for phase in phases:
            effect = results[f"{phase}/{metric}"].effect if f"{phase}/{metric}" in results else None
            reported = reported_change(f"{phase}/{metric}", main.arm, study.results.baseline)
            cells += [effect_cell(effect), signed(reported, 2)]
        rows.append((Endpoint(f"{phases[0]}/{metric}").title, *cells))
    titles = arm_titles(study.plan)
    heads = [f"{titles[main.arm]} over {titles[study.results.baseline]}, %"]
    for phase in phases:
        heads += [PHASE_TITLES[phase], "paper"]
    table = as_markdown(Table("", tuple(heads), tuple(rows)))
    shown = parts_shown(study.results)
    return f"{headline}\n{table}" + (f"\n{shown}\n" if shown else "")


def _headline(study: Study, _figures: str) -> str:
    """The headline, and by how much."""
    found = answer(study.plan, study.results)
    amount = found.sentences[:1] if _is_begun(study) else ()
    return " ".join([f"**{found.headline}.**", _progress(study.results), *amount]) + "\n"


def _answer(study: Study, figures: str) -> str:
    found = answer(study.plan, study.results)
    lines = [f"**{found.headline}.** {_progress(study.results)}"]
    if not _is_begun(study):
        return f"{lines[0]}\n"
    lines += ["", *(f"- {sentence}" for sentence in found.sentences)]
    lines += ["", f"![Change of each primary endpoint with its interval]({figures}/{study.name}-endpoints.svg)"]
    lines += ["", f"![Change of each primary endpoint, seed by seed]({figures}/{study.name}-seeds.svg)"]
    tables = [_narrow(endpoint_table(study.plan, study.results, primary=primary)) for primary in (True, False)]
    return "\n".join(lines) + "\n\n" + "\n".join(map(_shown, tables))


def _effects(study: Study, figures: str) -> str:
    found = [Endpoint(r.endpoint) for arm in study.results.arms for r in arm.endpoints if r.is_primary and r.effect]
    if not found:
        return "No arm has rows to compare yet.\n"
    phases = [title for phase, title in PHASE_TITLES.items() if phase in {endpoint.phase for endpoint in found}]
    pictures = [
        f"![Every effect {phase}]({figures}/{study.name}-effects-{phase.replace(' ', '-')}.svg)\n" for phase in phases
    ]
    if study.results.factorial:
        pictures.append(f"![How the parts act together]({figures}/{study.name}-interaction.svg)\n")
    tables = [*arms_tables(study.plan, study.results), *factorial_tables(study.plan, study.results)]
    return "\n".join([*pictures, *map(_shown, tables)])


def _curves(study: Study, figures: str) -> str:
    parts = [
        f"![Validation losses of {stage} by step]({figures}/{study.name}-curves-{stage}.svg)\n\n{stage}: {sentence}\n"
        for stage, sentence in late_changes(study.plan, study.ledger, study.results).items()
    ]
    return "\n".join(parts) or "No run has ended yet.\n"


def _cost(study: Study, _figures: str) -> str:
    if not study.results.costs:
        return "No run has ended yet.\n"
    machines = "; ".join(study.results.machines)
    return f"{_shown(cost_table(study.plan, study.results))}\nMachines: {machines}.\n"


def _tuning(study: Study, _figures: str) -> str:
    return _shown(tuning_table(study.plan, study.ledger)) if study.ledger.trials else "No trial has ended yet.\n"


def _rates(study: Study, figures: str) -> str:
    """Of each model against the baseline's, each at its best rate."""
    parts = [
        f"![Loss by learning rate, and best against best]({figures}/{_rates_name(study, found)})\n\n"
        + "\n".join(map(_shown, rate_tables(found)))
        for found in rate_results(study.plan, study.ledger)
    ]
    return "\n".join(parts) or "No seed has every rate of both models yet.\n"


def _rates_name(study: Study, found: RateResults) -> str:
    return f"{study.name}-rates-{found.model.title.lower().replace(' ', '-')}.svg"


PARTS: dict[str, Callable[[Study, str], str]] = {
    "setup": _setup,
    "headline": _headline,
    "short": _short,
    "answer": _answer,
    "effects": _effects,
    "curves": _curves,
    "cost": _cost,
    "tuning": _tuning,
    "rates": _rates,
}


def _narrow(table: Table) -> Table:
    """A table without the columns that a page has no room for; a study's report has them."""
    kept = [column for column, head in enumerate(table.heads) if head not in LEFT_OUT]
    heads, *rows = (tuple(line[column] for column in kept) for line in (table.heads, *table.rows))
    note = f"{table.note.partition('p, exact:')[0].strip()} More columns are in the study's report."
    if "p, corrected" in heads:
        note = f"{note} Corrected: the exact sign-flip test, by Holm for all primary endpoints. {SHOWN_FROM}"
    return Table(table.title, heads, tuple(rows), note)


def _is_begun(study: Study) -> bool:
    """Whether a primary endpoint has been measured for a pair."""
    return any(result.effect for result in study.results.arms[0].endpoints if result.is_primary)


def _progress(results: StudyResults) -> str:
    if results.is_complete:
        return f"{results.num_planned_seeds} seeds."
    return (
        f"Not finished: of the two, {results.num_seeds} of {results.num_planned_seeds} seeds are done; of all arms, "
        f"{results.num_rows} of {results.num_planned_rows} stages."
    )


def _shown(table: Table) -> str:
    return f"**{table.title}**\n\n{as_markdown(table)}\n{table.note}\n"


def main() -> None:
    """Rewrite the pages and draw the figures that they show."""
    asked, shown = set(), set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        asked |= asked_for(text)
        figures = FIGURES if page.parent == ROOT else Path(FIGURES).name
        page.write_text(published(text, figures=figures), encoding="utf-8")
        shown |= {Path(figure["path"]).name for figure in FIGURE.finditer(page.read_text(encoding="utf-8"))}
    for one in asked:
        draw_figures(ROOT, one, ROOT / FIGURES)
    draw_overview(ROOT, ROOT / FIGURES)
    for path in (ROOT / FIGURES).glob("*.svg"):
        if path.name not in shown:
            path.unlink()


if __name__ == "__main__":
    main()
