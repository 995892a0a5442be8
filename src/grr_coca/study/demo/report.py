"""Writes the report of a demo: an HTML page that loads nothing else."""

import io
import math
from collections.abc import Mapping, Sequence
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
from grr_coca.study.drawing import COLOURS, new_figure, style_axes, svg_text
from grr_coca.study.html_page import escaped, html_page, markdown_picture, markdown_table
from grr_coca.study.plan import DemoPlan, showcase_of
from grr_coca.study.thumbnails import as_webp, thumbnail
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
    recipes, names, pictures = demo_recipes(plan), arm_names(plan), _Pictures()
    pretrain, rows = next(iter(recipes.values())), comparison_rows(plan, arms)
    showcase = open_source(pretrain.data.test[plan.showcase])
    first, *finetunings = recipes
    title = f"{names[0]} against {names[1]}"
    bars = _improvement_bars([_short(r) for r in rows if _WITHOUT not in r.name], names)
    parts = [
        f"# {escaped(title)}\n",
        f"Both models were pretrained on {first} and fine-tuned on {', '.join(finetunings)}: the same pairs in the "
        "same order, the same steps, the same settings. They differ in the image encoder alone.\n",
        "## Results\n",
        _results_table(rows, short_names(names)),
        f"Change: over {escaped(names[1])}, below zero {escaped(names[0])} is better. Contrastive losses are means "
        f"over batches of {pretrain.evaluation.batch_size} pairs; they grow with that number. A model that guesses has "
        f"{math.log(pretrain.evaluation.batch_size):.2f}, and losses near or above that say nothing; the CoCa loss "
        "contains them, R@1 does not. Perplexity is per token of the models' shared vocabulary. Equal captions count "
        "as right answers of each other. Values are rounded here; the changes are not.\n",
        pictures.add("Change of each loss", bars) + "\n",
        "## What it took\n",
        _cost_table(arms, names, tuple(recipes)),
        f"{escaped(machine)} Seed {pretrain.seed}: {_schedules(recipes)}. Trained in {pretrain.precision}, measured in "
        "fp32.\n",
        "**One seed is not a claim.** The order of the two models can change with the seed. `grr-coca study run` runs "
        "both with many seeds, and compares them seed by seed. With a few, a real difference often passes unseen; its "
        "report says from how many on a difference is called one. And what holds for models of this size, after "
        "minutes, need not hold for larger ones.\n",
        "## Learning curves\n",
        "Validation losses are of the validation split without augmentation; its contrastive losses are of batches "
        f"of {pretrain.evaluation.batch_size} pairs, those of training of {pretrain.data.batch_size}, and so are "
        "higher.\n",
    ]
    for stage in recipes:
        curves = pictures.add(f"Losses of {stage} by step", _curves(names, runs, stage))
        parts += [f"### {stage}\n", f"{curves}\n"]
    for stage, recipe in recipes.items():
        is_first = stage == first
        drawn = (
            f"the split {plan.showcase}: a drawing style that neither model was trained on"
            if is_first
            else "the test split"
        )
        cards = [
            [pictures.add(card.truth, card.image), escaped(card.truth), *map(escaped, card.captions)]
            for card in _caption_cards(plan, recipe, stage, arms)
        ]
        parts += [
            f"## Captions: {stage}{f', {plan.showcase}' if is_first else ''}\n",
            f"Images drawn at random from {drawn}; greedy captions.\n",
            markdown_table(("image", "true caption", *map(escaped, names)), cards),
        ]
    parts += [
        f"## Where the models look: {plan.showcase}\n",
        "For each word of a model's caption, how much each patch of the image counts for it: from white to red, up to "
        "the patch that counts most. Attention to the patches times the gradient of the word's logit.\n",
    ]
    for heat in _heat_maps(showcase, arms):
        parts.append(f"### {escaped(heat.truth)}\n")
        for name, image in zip(names, heat.pictures, strict=True):
            parts.append(f"{escaped(name)}: {pictures.add(f'where {name} looks', image)}\n")
    parts.append(f"## Search: text → images of {plan.showcase}\n")
    for strip in _search_strips(showcase, arms):
        lines = [
            [escaped(name), " ".join(pictures.add(caption, image) for image, caption in hits)]
            for name, hits in zip(names, strip.hits, strict=True)
        ]
        parts.append(markdown_table((escaped(strip.query), "hits"), lines))
    write_whole(out, html_page(title, "\n".join(parts), pictures.by_address).encode("utf-8", "backslashreplace"))


class _Pictures:
    """Pictures of a page by their addresses."""

    def __init__(self) -> None:
        self.by_address: dict[str, str | bytes] = {}

    def add(self, alt: str, content: str | bytes) -> str:
        """Add a picture, and return it in Markdown."""
        address = f"picture-{len(self.by_address)}"
        self.by_address[address] = content
        return markdown_picture(alt, address)


def _results_table(rows: Sequence[Row], short: tuple[str, str]) -> str:
    heads = ["split"]
    for loss in LOSSES:
        heads += [f"{_LOSS_NAMES[loss]}, {short[0]}", short[1], "change"]
    heads += [f"R@1, text → image, {short[0]}", short[1], "chance"]
    lines = []
    for each in rows:
        line = [escaped(each.name)]
        for loss in LOSSES:
            line += [f"{each.model[loss]:.3f}", f"{each.baseline[loss]:.3f}", f"{each.change(loss):+.2%}"]
        recalls = f"{each.model['R@1']:.1%}", f"{each.baseline['R@1']:.1%}", f"{each.model['chance']:.2%}"
        lines.append([*line, *recalls])
    return markdown_table(list(map(escaped, heads)), lines, of_numbers=True)


def _cost_table(arms: Arms, names: tuple[str, str], stages: Sequence[str]) -> str:
    lines = [
        ["parameters", *(f"{arm.parameters:,}" for arm in arms)],
        ["of them in the image encoder", *(f"{arm.image_encoder_parameters:,}" for arm in arms)],
        ["MFLOP per pair, forward, full context", *(f"{arm.flops_per_pair / 1e6:.1f}" for arm in arms)],
        *([f"seconds, {stage}", *(f"{arm.seconds[stage]:.0f}" for arm in arms)] for stage in stages),
    ]
    return markdown_table(("", *map(escaped, names)), lines, of_numbers=True)


def _schedules(recipes: Mapping[str, Recipe]) -> str:
    return ", ".join(
        f"{stage} {recipe.schedule.steps} steps of {recipe.data.batch_size} pairs" for stage, recipe in recipes.items()
    )


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

    image: bytes
    truth: str
    captions: tuple[str, str]


@dataclass(frozen=True)
class _HeatCard:
    """The reference caption of an image, and each model's heat maps of the words of its caption."""

    truth: str
    pictures: tuple[bytes, bytes]


@dataclass(frozen=True)
class _SearchStrip:
    """A query and the images that each model finds, with their reference captions."""

    query: str
    hits: tuple[list[tuple[bytes, str]], list[tuple[bytes, str]]]


def _caption_cards(plan: DemoPlan, recipe: Recipe, stage: str, arms: Arms) -> list[_CaptionCard]:
    source = open_source(recipe.data.test[showcase_of(plan, stage)[0]])
    pairs = zip(arms[0].captions[stage], arms[1].captions[stage], strict=True)
    return [
        _CaptionCard(thumbnail(source[first.index]), first.truth, (first.caption, second.caption))
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
            pictures.append(as_webp(Image.open(io.BytesIO(png)).convert("RGB")))
        cards.append(_HeatCard(pair.caption, (pictures[0], pictures[1])))
    return cards


def _search_strips(source: PairSource, arms: Arms) -> list[_SearchStrip]:
    def hits(indices: Sequence[int]) -> list[tuple[bytes, str]]:
        return [(thumbnail(source[index]), source.caption(index)) for index in indices]

    both = zip(arms[0].searches, arms[1].searches, strict=True)
    return [_SearchStrip(first.query, (hits(first.indices), hits(second.indices))) for first, second in both]
