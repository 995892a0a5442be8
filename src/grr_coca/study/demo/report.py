"""The report of a comparison: one HTML file with everything in it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from grr_coca.data.images import decode_image
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.pairs import PairSource
from grr_coca.explain import WordMap, caption_picture
from grr_coca.files import write_whole
from grr_coca.study.demo.outcome import ArmResult
from grr_coca.study.demo.plan import arm_names, demo_recipes
from grr_coca.study.demo.plots import improvement_bars, learning_curves
from grr_coca.study.demo.table import LOSSES, Row, average_row, row, short_names
from grr_coca.study.page import render_page
from grr_coca.study.plan.folder import DemoPlan
from grr_coca.study.statistics.fewest import fewest_seeds
from grr_coca.study.thumbnails import as_webp, data_address, thumbnail
from grr_coca.train.recipe import Recipe
from grr_coca.train.run.logs import read_metrics

HEAT_MAP_DPI = 70

WITHOUT = " without "
"""In the name of a split that some captions were taken out of."""

Arms = tuple[ArmResult, ArmResult]


@dataclass(frozen=True)
class CaptionCard:
    """An image with its true caption and both models'."""

    image: str
    truth: str
    captions: tuple[str, str]


@dataclass(frozen=True)
class HeatCard:
    """The true caption of an image and, as data addresses, where each model looks for the words of its own."""

    truth: str
    pictures: tuple[str, str]


@dataclass(frozen=True)
class SearchStrip:
    """A text and the images that each model finds for it, as data addresses with their true captions."""

    query: str
    hits: tuple[list[tuple[str, str]], list[tuple[str, str]]]


def comparison_rows(plan: DemoPlan, arms: Arms) -> list[Row]:
    """The table: the splits of the pretraining set, each domain's test split, and the average of the domains."""
    model, baseline = arms
    rows = {name: row(name, model.evaluations[name], baseline.evaluations[name]) for name in model.evaluations}
    domains = [rows[f"{Path(recipe).stem}/test"] for recipe in plan.finetune]
    return [*rows.values(), average_row(f"average of {len(domains)} domains", domains)]


def write_report(plan: DemoPlan, arms: Arms, runs: tuple[Path, Path], machine: str, out: Path) -> None:
    """Write `report.html`; nothing in it is loaded from elsewhere.

    Args:
        plan: what was run.
        arms: the results of the model and of its baseline.
        runs: the folders in which their runs lie.
        machine: one line on the machine, shown as it is.
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
        machine=machine,
        seeds_needed=fewest_seeds(len(plan.endpoints.primary)),
        curves={name: _curves(names, runs, name) for name in recipes},
        bars=improvement_bars([_short(r) for r in rows if WITHOUT not in r.name], names),
        caption_grids={name: _caption_cards(plan, recipes[name], name, arms) for name in recipes},
        heat_maps=_heat_maps(open_source(pretrain.data.test[plan.showcase]), arms),
        strips=_search_strips(open_source(pretrain.data.test[plan.showcase]), arms),
    )
    write_whole(out, html.encode())


def _short(r: Row) -> Row:
    return Row(r.name.replace("/", "\n"), r.model, r.baseline)


def _curves(names: tuple[str, str], runs: tuple[Path, Path], stage: str) -> str:
    train, val = ([read_metrics(run / stage, split) for run in runs] for split in ("train", "val"))
    return learning_curves(names, (train[0], train[1]), (val[0], val[1]))


def _caption_cards(plan: DemoPlan, recipe: Recipe, stage: str, arms: Arms) -> list[CaptionCard]:
    split = plan.showcase if plan.showcase in recipe.data.test else "test"
    source = open_source(recipe.data.test[split])
    pairs = zip(arms[0].captions[stage], arms[1].captions[stage], strict=True)
    return [
        CaptionCard(_data_address(source, first.index), first.truth, (first.caption, second.caption))
        for first, second in pairs
    ]


def _heat_maps(source: PairSource, arms: Arms) -> list[HeatCard]:
    cards = []
    for both in zip(arms[0].heat_maps, arms[1].heat_maps, strict=True):
        pair = source[both[0].index]
        image = decode_image(pair.image, pair.name)
        pictures = []
        for explained in both:
            words = zip(explained.words, explained.heat, strict=True)
            png = caption_picture(image, [WordMap(word, torch.tensor(heat)) for word, heat in words], HEAT_MAP_DPI)
            pictures.append(data_address(as_webp(Image.open(io.BytesIO(png)).convert("RGB"))))
        cards.append(HeatCard(pair.caption, (pictures[0], pictures[1])))
    return cards


def _search_strips(source: PairSource, arms: Arms) -> list[SearchStrip]:
    def hits(indices: Sequence[int]) -> list[tuple[str, str]]:
        return [(_data_address(source, index), source.caption(index)) for index in indices]

    both = zip(arms[0].searches, arms[1].searches, strict=True)
    return [SearchStrip(first.query, (hits(first.indices), hits(second.indices))) for first, second in both]


def _data_address(source: PairSource, index: int) -> str:
    return data_address(thumbnail(source[index]))
