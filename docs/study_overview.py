"""GRR-CoCa over Baseline CoCa in several settings, side by side: tables and figures for the pages."""

from collections.abc import Sequence
from pathlib import Path

from opened_study import Asked, Study, open_study

from grr_coca.study.ledger import ledger_files
from grr_coca.study.report.answer import verdict
from grr_coca.study.report.figures import ForestPanel, forest_plot
from grr_coca.study.report.numbers import PHASE_TITLES, Endpoint, EndpointResult
from grr_coca.study.report.tables import Table, as_markdown, effect_cell

SETTINGS = {
    "studies/primary": "emoji, 64 patches, 600 steps",
    "studies/tokens16/600": "emoji, 16 patches, 600 steps",
    "studies/tokens16/1200": "emoji, 16 patches, 1,200 steps",
    "studies/tokens16/4000": "emoji, 16 patches, 4,000 steps",
    "studies/icons": "icons, 64 patches, 2,000 steps",
}
"""The studies by what their settings are called. Models, batches, optimizer and endpoints are alike."""
METRICS = ("contrastive_loss", "perplexity", "coca_loss")
NAME = "overview"
"""With which the names of its figures begin."""


def overview_folders(root: Path) -> list[Path]:
    """The folders of these studies, as far as they have rows."""
    return [root / folder for folder in SETTINGS if ledger_files(root / folder)]


def overview_figures(root: Path) -> dict[str, str]:
    """SVG text by file name: a forest for each phase, with a row for each study."""
    studies = _opened(root)
    plots = {}
    for phase, title in PHASE_TITLES.items():
        panels = []
        for metric in METRICS:
            endpoint = Endpoint(f"{phase}/{metric}")
            effects = [_result(study, endpoint).effect for study in studies.values()]
            panels.append(ForestPanel(endpoint.title, effects, endpoint.lower_is_better))
        name = f"{NAME}-{title.replace(' ', '-')}.svg"
        plots[name] = forest_plot(list(studies), panels, "change over Baseline CoCa")
    return plots


def short_overview(root: Path, _figures: str) -> str:
    """For the README: the CoCa loss alone."""
    return _table(root, [Endpoint(f"{phase}/coca_loss") for phase in PHASE_TITLES], "{metric} {phase}")


def full_overview(root: Path, figures: str) -> str:
    """A figure and a table for each phase."""
    parts = []
    for phase, title in PHASE_TITLES.items():
        shown = f"![Every study, {title}]({figures}/{NAME}-{title.replace(' ', '-')}.svg)"
        table = _table(root, [Endpoint(f"{phase}/{metric}") for metric in METRICS], "{metric}")
        parts.append(f"{shown}\n\n**{title[0].upper()}{title[1:]}**\n\n{table}")
    return "\n".join(parts)


def _table(root: Path, endpoints: Sequence[Endpoint], head: str) -> str:
    heads = [head.format(metric=endpoint.title, phase=PHASE_TITLES[endpoint.phase]) for endpoint in endpoints]
    rows = []
    for setting, study in _opened(root).items():
        found = [_result(study, endpoint) for endpoint in endpoints]
        cells = [effect_cell(result.effect, verdict(result) in ("better", "worse")) for result in found]
        rows.append((setting, *cells))
    return as_markdown(Table("", ("GRR-CoCa over Baseline CoCa, %", *heads), tuple(rows)))


def _opened(root: Path) -> dict[str, Study]:
    opened = {setting: open_study(root, Asked(folder, arm="grr_coca")) for folder, setting in SETTINGS.items()}
    return {setting: study for setting, study in opened.items() if study is not None}


def _result(study: Study, endpoint: Endpoint) -> EndpointResult:
    return next(result for result in study.results.arms[0].endpoints if result.endpoint == endpoint.name)
