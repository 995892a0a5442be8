"""Captions of all arms side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grr_coca.study.ledger import CaptionedExample, LedgerRow
from grr_coca.study.plan.plan import Plan, showcase_of, stage_names
from grr_coca.study.showcase import picture_path
from grr_coca.study.thumbnails import data_address


@dataclass(frozen=True)
class ExampleCaptions:
    """An image of the showcase: what people say of it, and each arm's caption. `picture`: a data address, if known."""

    image: str
    references: tuple[str, ...]
    captions: tuple[str, ...]
    picture: str | None


@dataclass(frozen=True)
class ExampleGrid:
    """The captions of some arms on images of a split, all of one stage and seed."""

    stage: str
    split: str
    seed: int
    arms: tuple[str, ...]
    examples: tuple[ExampleCaptions, ...]


def example_captions(plan: Plan, rows: Sequence[LedgerRow], arms: Sequence[str], folder: Path) -> list[ExampleGrid]:
    """The captions of those of the arms that have any, by stage, each of the first seed for which most of them do.

    Args:
        plan: of the study.
        rows: of the study.
        arms: the arms to show, in this order.
        folder: of the study, which may hold pictures of the showcase.
    """
    grids = []
    for stage in stage_names(plan):
        found = {(row.arm, row.seed): row.captions for row in rows if row.captions and row.stage == stage}
        seeds = sorted({seed for arm, seed in found if arm in arms})
        if not seeds:
            continue
        seed = max(seeds, key=lambda seed: (sum((arm, seed) in found for arm in arms), -seed))
        shown = tuple(arm for arm in arms if (arm, seed) in found)
        by_arm = [{example.image: example for example in found[arm, seed]} for arm in shown]
        common = [example for example in found[shown[0], seed] if all(example.image in said for said in by_arm)]
        examples = tuple(_example(example, by_arm, picture_path(folder, stage, example.image)) for example in common)
        grids.append(ExampleGrid(stage, showcase_of(plan, stage)[0], seed, shown, examples))
    return grids


def _example(first: CaptionedExample, by_arm: Sequence[dict[str, CaptionedExample]], picture: Path) -> ExampleCaptions:
    captions = tuple(captions[first.image].caption for captions in by_arm)
    address = data_address(picture.read_bytes()) if picture.is_file() else None
    return ExampleCaptions(first.image, first.references, captions, address)
