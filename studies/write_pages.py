"""Write what the ledgers say: `make study-docs`, which runs `python studies/write_pages.py`.

- `studies/NAME/README.md`: everything below the line `GENERATED`, with figures in `studies/NAME/figures/`.
- `studies/tokens16/README.md`: the table between `<!-- studies NAME -->` and `<!-- end -->`.

Each figure ends with the digest of the ledgers that it was drawn from. Tests hold pages and figures to the ledgers. The
page of results is written by hand: `check.py` holds it to the ledgers, and `draw_results.py` draws its figures.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from grr_coca.model.losses import LossWeights, coca_loss
from grr_coca.study.ledger import DIGESTS_FILE, PLAN_FILE, Ledger, LedgerRow, ledger_files, read_ledger
from grr_coca.study.plan import Plan, arm_named, compared_with, plan_of_folder, stage_names
from grr_coca.study.report.answer import answer, arm_titles, near_chance_in_words, verdict
from grr_coca.study.report.figures import late_changes, study_figures
from grr_coca.study.report.numbers import (
    PARTS_OF_PRESET,
    PHASE_TITLES,
    Effect,
    Endpoint,
    EndpointResult,
    StudyResults,
    effect_of,
    endpoint_values,
    rows_by_run,
    study_results,
)
from grr_coca.study.report.rates import RateResults, rate_figure, rate_results, rate_tables, rates_answer
from grr_coca.study.report.tables import (
    Table,
    arms_tables,
    as_markdown,
    cost_table,
    effect_cell,
    endpoint_table,
    ends_of_grids,
    factorial_tables,
    tuning_table,
)
from grr_coca.study.stages import stage_recipe

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "studies"
WITH_TABLES = (STUDIES / "tokens16" / "README.md",)
GENERATED = "<!-- Everything below is written by studies/write_pages.py. -->\n"
PLACE = re.compile(r"(?P<begin><!-- studies (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
COMMENT = re.compile(rb"^ *#.*\n", re.MULTILINE)
TOGETHER = "val and test"
"""Stands among the splits: both of them, weighted by pairs."""
TRAINING = "training"
"""Stands among the splits: means over the last steps of training, on augmented images."""


class Pair(NamedTuple):
    """An arm and the arm that it is compared with."""

    arm: str
    over: str


MODELS = Pair("grr_coca", "baseline_coca")
RATE_TRIALS = {
    "tokens16/1200": MODELS,
    "plus": Pair("grr_coca_plus", "baseline_plus"),
    "tokens16/rates": MODELS,
}
"""Studies that tried both models at several learning rates with 16 patches, in 300, 1,000 and 1,200 steps."""
DECAY = 0.5
"""The weight decay of these trials."""
OTHER_BASELINES = {"plus": ("baseline_plus",), "variants": ("grr_coca",)}
"""Studies whose arms are compared with a second baseline too."""
PAIRS = {
    "variants": (
        Pair("grr_coca_geglu_4x", "grr_coca"),
        Pair("baseline_geglu_4x", "baseline_geglu"),
        Pair("grr_coca_rope_1d", "grr_coca"),
        Pair("baseline_rope_1d", "baseline_rope_2d"),
        Pair("grr_coca_input_rope", "grr_coca"),
        Pair("grr_coca_mixed_rope", "grr_coca"),
        Pair("grr_coca_mixed_rope", "baseline_rms_geglu"),
        Pair("grr_coca_input_rope", "baseline_coca"),
        Pair("grr_coca_mixed_rope", "baseline_coca"),
    )
}
"""Studies that ask about several arms, each against an arm of its own. Their first arm is not the question."""


class Plateau(NamedTuple):
    """What a model reaches that has not begun to learn what a study is about.

    - `metric`: in the rows
    - `guessing`: its value for such a model
    - `part`: the part that is asked about
    """

    metric: str
    guessing: float
    part: str


PLATEAUS = {"position": Plateau("R@1", 1 / 8, "RoPE")}
"""Studies whose runs have two modes. They are counted: a mean and its interval would tell of no run."""
LEFT = 1.5
"""A run has left the plateau if its metric is above so many times that of guessing."""


@dataclass(frozen=True)
class Study:
    """A study that has rows. `name`: how the names of its figures begin; empty for the plan's own comparison."""

    folder: Path
    name: str
    plan: Plan
    ledger: Ledger
    results: StudyResults


@cache
def open_study(folder: Path, over: str | None = None, arm: str | None = None) -> Study | None:
    """A study from its folder; None if it has no rows yet.

    Args:
        folder: of the study.
        over: the arm to compare with; None: the plan's baseline.
        arm: the only arm to compare; None: all.
    """
    if not ledger_files(folder):
        return None
    plan = compared_with(plan_of_folder(folder), over)
    if arm:
        plan = replace(plan, arms=(arm_named(plan, arm), arm_named(plan, plan.baseline)))
    ledger = read_ledger(folder, seeds=plan.seeds)
    return Study(folder, f"over-{over}-" if over else "", plan, ledger, study_results(plan, ledger))


def study_folders() -> list[Path]:
    """Folders of studies whose README asks for a report."""
    pages = [path for path in STUDIES.rglob("README.md") if GENERATED in path.read_text(encoding="utf-8")]
    return sorted(page.parent for page in pages)


def with_report(text: str, folder: Path) -> str:
    """The README of a study with the newest report below its line `GENERATED`."""
    return text.partition(GENERATED)[0] + GENERATED + report(folder)


def report(folder: Path) -> str:
    """What a ledger says, as Markdown; how to read it stands in `studies/README.md`."""
    study = open_study(folder)
    if study is None:
        return "\nThis study has not been run yet.\n"
    name = _path(folder)
    if name in PAIRS:
        sections = [_pairs(folder, PAIRS[name])]
    elif rates := rate_results(study.plan, study.ledger):
        found = rates_answer(study.plan, rates)
        told = "".join(f"- {sentence}\n" for sentence in found.sentences)
        sections = [f"## The answer\n\n**{found.headline}.**\n\n{told}", *(_rates(folder, each) for each in rates)]
    else:
        asked = [_counts(study, PLATEAUS[name]), _endpoints(study)] if name in PLATEAUS else [_answer(study)]
        sections = [*asked, _splits(study)] if study.plan.seeds else []
    sections += [_arms(study)]
    for over in OTHER_BASELINES.get(name, ()):
        second = open_study(folder, over)
        assert second is not None
        title = arm_titles(second.plan)[over]
        sections += [_arms(second, f", over {title}") if name in PAIRS else _answer(second, f" over {title}")]
    sections += [_stages(study), _curves(study), _cost(study), _tuning(study), _notes(study)]
    return "".join(f"\n{section}" for section in sections if section)


def figures(folder: Path) -> dict[str, str]:
    """The figures that a report shows, as SVG text by file name."""
    drawn: dict[str, str] = {}
    for over in (None, *OTHER_BASELINES.get(_path(folder), ())):
        study = open_study(folder, over)
        if study is None:
            return {}
        found = study_figures(study.plan, study.ledger, study.results)
        named = {"endpoints": found.primary, "seeds": found.dots, "interaction": found.interaction}
        named |= {f"effects-{_dashed(phase)}": svg for phase, svg in found.effects.items()}
        named |= {f"curves-{curves.stage}": curves.plot for curves in found.curves}
        named |= {_rates_name(rates): rate_figure(rates) for rates in rate_results(study.plan, study.ledger)}
        drawn |= {f"{study.name}{name}.svg": svg for name, svg in named.items() if svg}
    text = report(folder)
    return {name: svg for name, svg in drawn.items() if f"(figures/{name})" in text}


def ledger_digest(folders: Iterable[Path]) -> str:
    """Digest of the rows of some studies, and of their plans without comments."""
    found = hashlib.sha256()
    for folder in folders:
        found.update(COMMENT.sub(b"", (folder / PLAN_FILE).read_bytes()))
        for path in (folder / DIGESTS_FILE, *ledger_files(folder)):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def marked(svg: str, folders: Iterable[Path]) -> str:
    """A figure with the digest of the ledgers that it was drawn from."""
    return f"{svg.rstrip()}\n<!-- drawn from the ledger {ledger_digest(folders)} -->\n"


def with_tables(text: str, studies: Path = STUDIES) -> str:
    """A page with the newest tables of all studies."""
    return PLACE.sub(lambda place: f"{place['begin']}{TABLES[place['name']](studies)}{place['end']}", text)


def rates_table(studies: Path) -> str:
    """GRR-CoCa's CoCa loss over Baseline CoCa's on `val` by learning rate, in trials of one seed each."""
    changes = _rate_changes(studies)
    rates = sorted({rate for by_rate in changes.values() for rate in by_rate})
    cells = {
        steps: [effect_of({0: found[r]}) if r in found else None for r in rates] for steps, found in changes.items()
    }
    rows = [(steps, *map(effect_cell, effects)) for steps, effects in cells.items()]
    return as_markdown(Table("", ("steps", *(f"{rate:g}" for rate in rates)), tuple(rows)))


def _rate_changes(studies: Path) -> dict[str, dict[float, float]]:
    """By number of steps and learning rate: the log ratio of the two models' CoCa losses on `val`, one seed."""
    changes = {}
    for name, models in RATE_TRIALS.items():
        stage = stage_names(plan_of_folder(studies / name))[0]
        trials = [row for row in read_ledger(studies / name, seeds=()).trials if row.stage == stage]
        trials = [row for row in trials if row.arm in models and row.settings["optimizer.weight_decay"] == DECAY]
        losses = {
            (row.arm, float(str(row.settings["optimizer.lr"]))): row.metrics["val"]["coca_loss"] for row in trials
        }
        ratios = {rate: math.log(losses[models.arm, rate] / losses[models.over, rate]) for _, rate in losses}
        changes[f"{trials[0].steps:,}"] = ratios
    return changes


TABLES: dict[str, Callable[[Path], str]] = {"rates": rates_table}


def _effect(study: Study, endpoint: Endpoint, split: str) -> Effect | None:
    """The change of an endpoint on a split, or in training; None if the split is not in all rows, or the study has no
    such phase."""
    if endpoint.phase == "finetuning" and not study.plan.finetune:
        return None
    plan = replace(study.plan, endpoints=replace(study.plan.endpoints, split=split))
    rows = rows_by_run([_with_training(_with_together(row)) for row in study.ledger.rows])
    arm, over = (endpoint_values(rows, plan, endpoint, name) for name in (study.results.arms[0].arm, plan.baseline))
    return effect_of({seed: math.log(arm[seed] / over[seed]) for seed in arm if seed in over})


def _with_together(row: LedgerRow) -> LedgerRow:
    """A row with `val` and `test` as one more split, weighted by pairs."""
    splits = [row.metrics[split] for split in ("val", "test") if split in row.metrics]
    if len(splits) < 2 or any("num_pairs" not in found for found in splits):
        return row
    pairs = sum(found["num_pairs"] for found in splits)
    losses = {
        name: sum(found["num_pairs"] * found[name] for found in splits) / pairs
        for name in ("contrastive_loss", "captioning_loss", "coca_loss")
    }
    together = {**losses, "perplexity": math.exp(losses["captioning_loss"])}
    return replace(row, metrics={**row.metrics, TOGETHER: together})


def _with_training(row: LedgerRow) -> LedgerRow:
    """A row with the losses of its last training steps as another split."""
    if not row.curve:
        return row
    contrastive, captioning = (row.curve[-1].train[name] for name in ("contrastive", "captioning"))
    losses = {
        "contrastive_loss": contrastive,
        "perplexity": math.exp(captioning),
        "coca_loss": coca_loss(contrastive, captioning, LossWeights()),
    }
    return replace(row, metrics={**row.metrics, TRAINING: losses})


def _answer(study: Study, over: str = "") -> str:
    """The headline, what follows from it, the endpoints and their figures."""
    found = answer(study.plan, study.results)
    lines = [f"## The answer{over}\n\n**{found.headline}.** {_progress(study.results)}\n"]
    if not _is_begun(study):
        return lines[0]
    lines += ["\n", *(f"- {sentence}\n" for sentence in found.sentences), "\n", _endpoints(study)]
    return "".join(lines)


def _endpoints(study: Study) -> str:
    """The endpoints of the first arm and their figures."""
    lines = [_figure(study, "endpoints", "Change of each primary endpoint with its interval")]
    lines += [_figure(study, "seeds", "Change of each primary endpoint, seed by seed")]
    tables = [endpoint_table(study.plan, study.results, primary=primary) for primary in (True, False)]
    return "".join(lines) + "\n".join(_shown(table) for table in tables if table.rows)


def _counts(study: Study, plateau: Plateau) -> str:
    """How many runs with and without a part have left the plateau."""
    plan = study.plan
    endpoint = Endpoint(f"pretraining/{plateau.metric}")
    values = {arm.name: endpoint_values(rows_by_run(study.ledger.rows), plan, endpoint, arm.name) for arm in plan.arms}
    has_part = {arm.name: plateau.part in PARTS_OF_PRESET[arm.preset_name] for arm in plan.arms}
    bound = LEFT * plateau.guessing
    told = []
    for side in (True, False):
        found = [value for name, by_seed in values.items() if has_part[name] is side for value in by_seed.values()]
        told.append(f"{sum(value > bound for value in found)} of {len(found)} {'models with' if side else 'without'}")
    titles, rows = arm_titles(plan), []
    for name, by_seed in values.items():
        left = sorted(value for value in by_seed.values() if value > bound)
        stayed = sorted(value for value in by_seed.values() if value <= bound)
        rows.append((titles[name], f"{len(left)} of {len(by_seed)}", _range(left), _range(stayed)))
    heads = ("arm", "left the plateau", f"{endpoint.title}, of these, %", "of the others, %")
    lines = [
        f"## The answer\n\n**{told[0]} {plateau.part} left the plateau, and {told[1]}.** ",
        f"{_progress(study.results)}\n\n",
        f"On {plan.endpoints.split}, a model that guesses has {endpoint.title} {100 * plateau.guessing:g} %. ",
        f"One above {100 * bound:g} % has left this plateau. The runs of an arm have these two modes, so the means ",
        f"and intervals of the tables below describe no single run.\n\n{as_markdown(Table('', heads, tuple(rows)))}\n",
    ]
    return "".join(lines)


def _range(shares: list[float]) -> str:
    """Shares in per cent, from the lowest to the highest."""
    return " to ".join(dict.fromkeys(f"{100 * share:.1f}" for share in (shares[:1] + shares[-1:]))) or "–"


def _splits(study: Study, level: str = "##") -> str:
    """The primary endpoints on every split that the rows have, and in training."""
    if not _is_begun(study):
        return ""
    rows = []
    for phase, title in PHASE_TITLES.items():
        endpoints = [e for e in map(Endpoint, study.plan.endpoints.primary) if e.phase == phase]
        splits = dict.fromkeys(split for row in study.ledger.rows for split in row.metrics)
        for split in (*splits, TOGETHER, TRAINING):
            effects = [_effect(study, endpoint, split) for endpoint in endpoints]
            if any(effects):
                rows.append((f"{title}, {split}", *map(_with_count, effects)))
    heads = ("", *dict.fromkeys(Endpoint(name).title for name in study.plan.endpoints.primary))
    return _shown(Table("The same on every split, and in training", heads, tuple(rows)), level)


def _with_count(effect: Effect | None) -> str:
    """`+4.6 (+2.6 to +6.5), 0 of 8`: the change, and in how many seeds it is a fall."""
    if effect is None:
        return "–"
    return f"{effect_cell(effect)}, {sum(change < 0 for change in effect.changes)} of {effect.num_seeds}"


def _pairs(folder: Path, pairs: Sequence[Pair]) -> str:
    """A row for each pair of arms, a column for each primary endpoint."""
    rows, compared, endpoints = [], [], plan_of_folder(folder).endpoints.primary
    for pair in pairs:
        study = open_study(folder, pair.over, pair.arm)
        assert study is not None
        titles = arm_titles(study.plan)
        compared.append(study.results)
        found = {result.endpoint: result for result in study.results.arms[0].endpoints}
        cells = [_starred(found[name]) for name in endpoints]
        rows.append((f"{titles[pair.arm]} over {titles[pair.over]}", *cells))
    heads = ("", *(Endpoint(name).full_title for name in endpoints))
    warnings = dict.fromkeys(near_chance_in_words(found) for found in compared)
    table = Table("Each form against its plain form, and the best two against Baseline CoCa", heads, tuple(rows))
    return _shown(table, "##") + "".join(f"\n{warning}\n" for warning in warnings if warning)


def _rates(folder: Path, found: RateResults) -> str:
    """A model against the baseline's, at each rate and each at its best."""
    shown = f"![Loss by learning rate, and best against best](figures/{_rates_name(found)}.svg)\n\n"
    tables = [f"{_shown(table)}\n{table.note}\n" for table in rate_tables(found)]
    model, baseline = (curve.arms[curve.best] for curve in (found.model, found.baseline))
    best = open_study(folder, over=baseline, arm=model)
    assert best is not None
    return f"## Learning rates, {found.model.title}\n\n{shown}" + "\n".join([*tables, _splits(best, "###")])


def _rates_name(found: RateResults) -> str:
    return f"rates-{_dashed(found.model.title.lower())}"


def _starred(result: EndpointResult) -> str:
    return effect_cell(result.effect, verdict(result) in ("better", "worse"))


def _arms(study: Study, over: str = "") -> str:
    """Every arm and every effect of the factorial."""
    results = study.results
    if not results.factorial and len(results.begun_arms) < 2:
        return ""
    endpoints = [Endpoint(name) for name in study.plan.endpoints.primary]
    phases = [title for phase, title in PHASE_TITLES.items() if any(e.phase == phase for e in endpoints)]
    pictures = [_figure(study, f"effects-{_dashed(phase)}", f"Every effect {phase}") for phase in phases]
    pictures += [_figure(study, "interaction", "How the parts act together")] if results.factorial else []
    tables = [*arms_tables(study.plan, results), *factorial_tables(study.plan, results)]
    title = f"## Every arm{' and every part' if results.factorial else ''}{over}\n\n"
    return title + "".join(pictures) + "\n".join(map(_shown, tables))


def _stages(study: Study) -> str:
    """Stages with what the recipes of all arms say of them, and how many arms and seeds there are."""
    plan = study.plan
    rows = []
    for stage in stage_names(plan):
        recipes = [stage_recipe(plan, arm, stage, 0, {}) for arm in plan.arms]
        told = [
            (f"{each.schedule.steps:,}", str(each.data.batch_size), each.optimizer.name, each.precision)
            for each in recipes
        ]
        rows.append((stage, *(" / ".join(dict.fromkeys(column)) for column in zip(*told, strict=True))))
    heads = ("stage", "steps", "pairs a step", "optimizer", "precision")
    counts = f"{len(plan.arms)} arms, {len(plan.seeds)} seeds.\n\n" if plan.seeds else ""
    return f"## How it was run\n\n{counts}{as_markdown(Table('', heads, tuple(rows)))}"


def _curves(study: Study) -> str:
    parts = [
        f"{_figure(study, f'curves-{stage}', f'Validation losses of {stage} by step')}{stage}: {sentence}\n"
        for stage, sentence in late_changes(study.plan, study.ledger, study.results).items()
    ]
    return "## Learning curves\n\n" + "\n".join(parts) if parts else ""


def _cost(study: Study) -> str:
    if not study.results.costs:
        return ""
    machines = "; ".join(study.results.machines)
    return f"{_shown(cost_table(study.plan, study.results), '##')}\nMachines: {machines}.\n"


def _tuning(study: Study) -> str:
    if not study.ledger.trials:
        return ""
    at_end = "; ".join(ends_of_grids(study.plan, study.ledger))
    note = f"\nTaken at an end of the grid, so that a better value may lie beyond it: {at_end}.\n" if at_end else ""
    return _shown(tuning_table(study.plan, study.ledger), "##") + note


def _notes(study: Study) -> str:
    """Rows that do not count, rows of several versions of the code, and values that are missing."""
    if not study.results.notes:
        return ""
    return "## Notes on the ledger\n\n" + "".join(f"- {note}\n" for note in study.results.notes)


def _is_begun(study: Study) -> bool:
    """Whether a primary endpoint has been measured for a pair of runs."""
    return any(result.effect for result in study.results.arms[0].endpoints if result.is_primary)


def _progress(results: StudyResults) -> str:
    if results.is_complete:
        return f"{results.num_planned_seeds} seeds."
    return (
        f"Not finished: of the two, {results.num_seeds} of {results.num_planned_seeds} seeds are done; of all arms, "
        f"{results.num_rows} of {results.num_planned_rows} stages."
    )


def _shown(table: Table, level: str = "###") -> str:
    """A table under its title. Its note is left out: `studies/README.md` has all of them, once."""
    return f"{level} {table.title}\n\n{as_markdown(table)}"


def _figure(study: Study, name: str, title: str) -> str:
    return f"![{title}](figures/{study.name}{name}.svg)\n\n"


def _dashed(phase: str) -> str:
    return phase.replace(" ", "-")


def _path(folder: Path) -> str:
    """A study's folder, seen from `studies`."""
    return folder.relative_to(STUDIES).as_posix() if folder.is_relative_to(STUDIES) else folder.name


def main() -> None:
    """Rewrite all reports, their figures, and the table of `tokens16`."""
    for folder in study_folders():
        page, drawn = folder / "README.md", folder / "figures"
        page.write_text(with_report(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
        svgs = figures(folder)
        if svgs:
            drawn.mkdir(exist_ok=True)
        for name, svg in svgs.items():
            (drawn / name).write_text(marked(svg, [folder]), encoding="utf-8")
        for path in drawn.glob("*.svg"):
            if path.name not in svgs:
                path.unlink()
    for page in WITH_TABLES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
