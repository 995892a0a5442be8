"""The models that ship with this package, by name. This module does not import torch.

Each lies in `weights/NAME/`: a checkpoint in half precision with a manifest, `card.json` for programs and `card.md` for
people. `scripts/ship.py` writes them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.files import read_json

FOLDER = Path(__file__).parent / "weights"
DEFAULT = "icons"
"""The model that is used if none is given."""
FOR_PHOTOGRAPHS = "coca-l14-captions"
"""The published model that captions photographs."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
"""`owner/name` on the Hugging Face hub."""


@dataclass(frozen=True)
class Figure:
    """A measured number with its 95 % interval: a bootstrap over the images of the split."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Description of a shipped model, its data and its figures.

    `figures`: by split, then by metric (`perplexity`, `text_to_image/R@1`, `exact_captions` …). They include `chance`,
    whose interval has width 0.
    """

    name: str
    summary: str
    preset: str
    parameters: int
    data: str
    licence: str
    recipe: str
    steps: int
    figures: dict[str, dict[str, Figure]]


def shipped_models() -> dict[str, ModelCard]:
    """The cards of all shipped models, by name."""
    cards = {name: FOLDER / name / "card.json" for name in shipped_names()}
    return {name: from_dict(ModelCard, read_json(path), str(path)) for name, path in cards.items()}


def shipped_names() -> list[str]:
    """The names of all shipped models."""
    return sorted(path.parent.name for path in FOLDER.glob("*/card.json"))


def shipped_folder(name: str) -> Path | None:
    """The checkpoint folder of a shipped model; None if there is no model of this name."""
    return FOLDER / name if name in shipped_names() else None
