"""Draw the two figures of docs/results.md: `make study-docs`, which runs `python studies/draw_results.py`.

Each figure ends with the digest of the ledgers that it was drawn from; a test holds it to them.
"""

import hashlib
import math
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
from changes import Change, Joined, Setting, signed
from check import read_settings
from ledgers import ROOT, ledger_of, rows_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grr_coca_study.report.figures import COLOURS, FAINT, new_figure, style_axes, svg_text

TITLES = {
    "adamw": "AdamW, 600 steps",
    "adamw_again": "the same, fresh seeds",
    "pooler": "AdamW, 600 steps, with a pooler",
    "long": "AdamW, 2,400 steps",
    "pooler_long": "the same with a pooler, four seeds",
    "longest": "AdamW, 4,800 steps, four seeds",
    "left_three": "AdamW, 2,400, three more styles",
    "muon": "Muon, 600 steps, best rate",
    "again": "the same, fresh seeds",
    "fresh": "Muon, 600 steps, half the best rate",
    "p16": "Muon, 600 steps, shared rate",
    "p64": "the same, 64 patches",
    "p16_1200": "Muon, 1,200 steps, shared rate",
    "muon_long": "Muon, 2,400 steps, four seeds",
    "recipe_both": "Muon, our recipe, 3,000 steps",
    "p16_4000": "Muon, 4,000 steps, shared rate",
    "icons": "Muon, icons, 2,000 steps",
}
REPORTED = {
    "coca": ("CoCa loss", -7.15),
    "perplexity": ("perplexity", -3.71),
    "contrastive": ("contrastive loss", -27.25),
}
"""Losses with what the paper reports after pretraining, in per cent."""
MARKS = (
    ("test", "known styles, test", COLOURS[0], "o"),
    ("val", "known styles, val", "#5aa9dd", "s"),
    ("style", "unseen styles", COLOURS[1], "^"),
)
MODELS = (("grr_coca", "GRR-CoCa", COLOURS[0]), ("baseline_coca", "Baseline CoCa", COLOURS[1]))
CURVES = {
    "Muon, 600 steps": dict.fromkeys((0.0015, 0.003, 0.006, 0.012, 0.024), "rate_curves/600"),
    "AdamW, 600 steps": dict.fromkeys((0.00075, 0.0015, 0.003), "adamw/600"),
    "AdamW, 2,400 steps": {0.000375: "adamw_long/2400_lower_rate"}
    | dict.fromkeys((0.00075, 0.0015, 0.003), "adamw_long/2400_rates"),
}
"""The study of each rate."""
SETTINGS: dict[str, Setting | Joined] = read_settings()["drawn"].settings
FIGURES = {
    "results-forest.svg": list(dict.fromkeys(study for setting in SETTINGS.values() for study in setting.studies())),
    "results-rates.svg": list(dict.fromkeys(study for found in CURVES.values() for study in found.values())),
}
"""The figures of the page and the studies that they are drawn from."""


def forest() -> Figure:
    """Return the three losses in each setting: a row a setting, a mark a split."""
    figure = new_figure(5.2)
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 3))
    for axes, (metric, (title, reported)) in zip(panels, REPORTED.items(), strict=True):
        for (row, setting), (place, (split, label, colour, marker)) in product(
            enumerate(SETTINGS.values()), enumerate(MARKS)
        ):
            if setting.studies() == ["icons"] and split == "val":
                continue  # it has the unseen styles
            _mark(axes, setting[f"{split} {metric}"], row + 0.24 * (place - 1), colour, marker, "" if row else label)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axvline(reported, color=FAINT, linewidth=1, linestyle="--", label="paper, after pretraining")
        style_axes(axes, f"{title}, %")
        axes.grid(visible=False)
        for row in range(0, len(SETTINGS), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.08, linewidth=0)
    panels[0].set_yticks(range(len(SETTINGS)), [TITLES[name] for name in SETTINGS])
    panels[0].set_ylim(len(SETTINGS) - 0.5, -0.5)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def _mark(axes: Axes, change: Change, height: float, colour: str, marker: str, label: str) -> None:
    """A change with its interval: over seeds and drawings, or dotted over seeds alone."""
    mean, *over_seeds = change.ends()
    both = change.over_both()
    low, high = (100 * math.expm1(end) for end in both or over_seeds)
    axes.hlines(height, low, high, color=colour, linewidth=1.6, linestyle="-" if both else ":")
    axes.plot(100 * math.expm1(mean), height, marker, color=colour, markersize=4.5, label=label or None)


def rates() -> Figure:
    """The CoCa loss on `val` by learning rate, a panel a setting, and the change on known styles at each rate."""
    figure = new_figure(3.4)
    panels = figure.subplots(1, 3, sharey=True, width_ratios=[len(found) for found in CURVES.values()])
    for axes, (setting, studies) in zip(panels, CURVES.items(), strict=True):
        found = list(studies)
        for name, title, colour in MODELS:
            losses = np.array([_losses(study, f"{name}_{rate}") for rate, study in studies.items()])
            means = np.exp(np.log(losses).mean(axis=1))
            axes.fill_between(found, losses.min(axis=1), losses.max(axis=1), color=colour, alpha=0.2, linewidth=0)
            axes.plot(found, means, "o-", color=colour, linewidth=1.5, markersize=4, label=title)
            best = int(means.argmin())
            axes.plot(found[best], means[best], "o", color=colour, markersize=10, fillstyle="none")
        for rate, study in studies.items():
            change = Setting(study, (f"grr_coca_{rate}",), (f"baseline_coca_{rate}",), study)["known coca"]
            axes.annotate(
                f"{signed(change.ends()[0])} %",
                (rate, 0.03),
                xycoords=("data", "axes fraction"),
                ha="center",
                fontsize=8,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(found, [f"{rate:g}" for rate in found])
        axes.margins(x=0.18)
        axes.set_xlabel("learning rate", fontsize=8)
        style_axes(axes, setting)
    panels[0].set_ylabel("CoCa loss on val", fontsize=8)
    panels[0].set_ylim(bottom=2.6)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _losses(study: str, arm: str) -> list[float]:
    rows = [row for (name, _, _), row in rows_of(study).items() if name == arm]
    return [row["metrics"]["val"]["coca_loss"] for row in rows]


def digest(studies: Iterable[str]) -> str:
    """Digest of the rows of some studies."""
    found = hashlib.sha256()
    for study in studies:
        for path in ledger_of(study):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def main(folder: Path = ROOT / "docs") -> None:
    """Write both figures."""
    for (name, studies), figure in zip(FIGURES.items(), (forest(), rates()), strict=True):
        svg = f"{svg_text(figure).rstrip()}\n<!-- drawn from the ledger {digest(studies)} -->\n"
        (folder / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
