"""Writes the report of a demo: an HTML page that loads nothing else."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from grr_coca.common.files import write_whole
from grr_coca.data.images import decode_image
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.table import LOSSES, Row, average_row, row, short_names
from grr_coca.infer.explain import WordMap, caption_picture
from grr_coca.study.demo.outcome import ArmResult
from grr_coca.study.demo.plan import arm_names, demo_recipes
from grr_coca.study.drawing import COLOURS, new_figure, render_page, style_axes, svg_text
from grr_coca.study.plan import DemoPlan, showcase_of
from grr_coca.study.thumbnails import as_webp, data_address, thumbnail
from grr_coca.train.logs import read_metrics
from grr_coca.train.recipe import Recipe

_LOSS_NAMES = {"contrastive_loss": "contrastive loss", "perplexity": "perplexity", "coca_loss": "CoCa loss"}

Arms = tuple[ArmResult, ArmResult]
"""The model and its baseline."""

_Log = list[dict[str, float]]
"""The lines of a run's log."""

_HEAT_MAP_DPI = 70
_WITHOUT = " without "
"""Part of the name of a split from which images with certain words were removed."""


def comparison_rows(plan: DemoPlan, arms: Arms) -> list[Row]:
    """Rows of the table: the splits of pretraining, the test split of each domain, and the average of the domains."""
    model, baseline = arms
    rows = {name: row(name, model.evaluations[name], baseline.evaluations[name]) for name in model.evaluations}
    domains = [rows[f"{Path(recipe).stem}/test"] for recipe in plan.finetune]
    return [*rows.values(), average_row(f"average of {len(domains)} domains", domains)]


def write_report(plan: DemoPlan, arms: Arms, runs: tuple[Path, Path], machine: str, out: Path) -> None:
    """Write the report.

    Args:
        plan: the demo.
        arms: the results of the model and of its baseline.
        runs: the folders of their runs.
        machine: a line on the machine.
        out: the file to write.
    """
    recipes = demo_recipes(plan)
    names = arm_names(plan)
    pretrain = next(iter(recipes.values()))
    rows = comparison_rows(plan, arms)
    html = render_page(
        "grr_coca.study.demo",
        "report.html.j2",
        plan=plan,
        names=names,
        short=short_names(names),
        arms=arms,
        recipes=recipes,
        rows=rows,
        losses=LOSSES,
        guessing=math.log(pretrain.evaluation.batch_size),
        machine=machine,
        curves={name: _curves(names, runs, name) for name in recipes},
        bars=_improvement_bars([_short(r) for r in rows if _WITHOUT not in r.name], names),
        caption_grids={name: _caption_cards(plan, recipes[name], name, arms) for name in recipes},
        heat_maps=_heat_maps(open_source(pretrain.data.test[plan.showcase]), arms),
        strips=_search_strips(open_source(pretrain.data.test[plan.showcase]), arms),
    )
    write_whole(out, html.encode())


# --- Plots


def learning_curves(names: tuple[str, str], train: tuple[_Log, _Log], val: tuple[_Log, _Log]) -> str:
    """Learning curves: validation losses by step, over faint training losses."""
    figure = new_figure(3.2)
    for axes, train_key, val_key, title in zip(
        figure.subplots(1, 2),
        ("contrastive", "captioning"),
        ("contrastive_loss", "captioning_loss"),
        ("contrastive loss", "captioning loss (nats per token)"),
        strict=True,
    ):
        for name, colour, train_log, val_log in zip(names, COLOURS, train, val, strict=True):
            axes.plot(*_series(train_log, train_key), color=colour, alpha=0.45, linewidth=1, label=f"{name}, train")
            axes.plot(*_series(val_log, val_key), color=colour, marker="o", markersize=4, label=f"{name}, val")
        style_axes(axes, title)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    return svg_text(figure)


def _improvement_bars(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """Bars with the change of each loss over the baseline in per cent, in a group for each split."""
    figure = new_figure(3.0)
    axes = figure.subplots()
    width = 0.8 / len(LOSSES)
    for i, (loss, shade) in enumerate(zip(LOSSES, ("#123f63", "#1b6ca8", "#7fb2d9"), strict=True)):
        positions = [group + (i - 1) * width for group in range(len(rows))]
        bars = axes.bar(
            positions, [100 * row.change(loss) for row in rows], width, color=shade, label=_LOSS_NAMES[loss]
        )
        axes.bar_label(bars, fmt="%+.1f", fontsize=7, padding=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.margins(y=0.18)
    style_axes(axes, f"change of {names[0]} over {names[1]} in %, below zero is better")
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return svg_text(figure)


def _series(log: _Log, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric. Lines without it, whose steps were all skipped, are left out."""
    points = [(row["step"], row[key]) for row in log if key in row]
    return [step for step, _ in points], [value for _, value in points]


def _short(r: Row) -> Row:
    return Row(r.name.replace("/", "\n"), r.model, r.baseline)


def _curves(names: tuple[str, str], runs: tuple[Path, Path], stage: str) -> str:
    train, val = ([read_metrics(run / stage, split) for run in runs] for split in ("train", "val"))
    return learning_curves(names, (train[0], train[1]), (val[0], val[1]))


# --- Cards


@dataclass(frozen=True)
class _CaptionCard:
    """An image with its reference caption and the captions of both models."""

    image: str
    truth: str
    captions: tuple[str, str]


@dataclass(frozen=True)
class _HeatCard:
    """The reference caption of an image and, as data addresses, each model's heat maps of the words of its caption."""

    truth: str
    pictures: tuple[str, str]


@dataclass(frozen=True)
class _SearchStrip:
    """A query and the images that each model finds, as data addresses with their reference captions."""

    query: str
    hits: tuple[list[tuple[str, str]], list[tuple[str, str]]]


def _caption_cards(plan: DemoPlan, recipe: Recipe, stage: str, arms: Arms) -> list[_CaptionCard]:
    source = open_source(recipe.data.test[showcase_of(plan, stage)[0]])
    pairs = zip(arms[0].captions[stage], arms[1].captions[stage], strict=True)
    return [
        _CaptionCard(_data_address(source, first.index), first.truth, (first.caption, second.caption))
        for first, second in pairs
    ]


def _heat_maps(source: PairSource, arms: Arms) -> list[_HeatCard]:
    cards = []
    for both in zip(arms[0].heat_maps, arms[1].heat_maps, strict=True):
        pair = source[both[0].index]
        image = decode_image(pair.image, pair.name)
        pictures = []
        for explained in both:
            words = zip(explained.words, explained.heat, strict=True)
            png = caption_picture(image, [WordMap(word, torch.tensor(heat)) for word, heat in words], _HEAT_MAP_DPI)
            pictures.append(data_address(as_webp(Image.open(io.BytesIO(png)).convert("RGB"))))
        cards.append(_HeatCard(pair.caption, (pictures[0], pictures[1])))
    return cards


def _search_strips(source: PairSource, arms: Arms) -> list[_SearchStrip]:
    def hits(indices: Sequence[int]) -> list[tuple[str, str]]:
        return [(_data_address(source, index), source.caption(index)) for index in indices]

    both = zip(arms[0].searches, arms[1].searches, strict=True)
    return [_SearchStrip(first.query, (hits(first.indices), hits(second.indices))) for first, second in both]


def _data_address(source: PairSource, index: int) -> str:
    return data_address(thumbnail(source[index]))
