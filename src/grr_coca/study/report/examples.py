"""Captions of all arms side by side."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grr_coca.study.ledger import CaptionedExample, LedgerRow

THUMBNAILS = "showcase"
"""Folder beside the ledger with a small WebP of each image, by its key."""


@dataclass(frozen=True)
class ExampleCaptions:
    """An image of the showcase: what people say of it, and each arm's caption. `picture`: a data address, if known."""

    image: str
    references: tuple[str, ...]
    captions: tuple[str, ...]
    picture: str | None


@dataclass(frozen=True)
class ExampleGrid:
    """The captions of some arms, all of one seed."""

    seed: int
    arms: tuple[str, ...]
    examples: tuple[ExampleCaptions, ...]


def example_captions(rows: Sequence[LedgerRow], arms: Sequence[str], folder: Path) -> ExampleGrid | None:
    """The captions of those of the arms that have any, of the first seed for which most of them do.

    Args:
        rows: of the study.
        arms: the arms to show, in this order.
        folder: of the study, which may hold thumbnails.
    """
    found = {(row.arm, row.seed): row.captions for row in rows if row.captions and row.arm in arms}
    if not found:
        return None
    seeds = sorted({seed for _, seed in found})
    seed = max(seeds, key=lambda seed: (sum((arm, seed) in found for arm in arms), -seed))
    shown = tuple(arm for arm in arms if (arm, seed) in found)
    by_arm = [{example.image: example for example in found[arm, seed]} for arm in shown]
    common = [example for example in found[shown[0], seed] if all(example.image in captions for captions in by_arm)]
    return ExampleGrid(seed, shown, tuple(_example(example, by_arm, folder) for example in common))


def _example(first: CaptionedExample, by_arm: Sequence[dict[str, CaptionedExample]], folder: Path) -> ExampleCaptions:
    captions = tuple(captions[first.image].caption for captions in by_arm)
    return ExampleCaptions(first.image, first.references, captions, _picture(folder, first.image))


def _picture(folder: Path, image: str) -> str | None:
    path = folder / THUMBNAILS / f"{Path(image).name}.webp"
    if not path.is_file():
        return None
    return "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()
