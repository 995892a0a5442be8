"""Add what was measured to the card of a model that ships: figures to `card.json`, and a section to `card.md`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.files import read_json
from grr_coca.model.shipped_models import Figure, ModelCard


def read_card(folder: Path) -> ModelCard:
    """The card in the folder of a model."""
    return from_dict(ModelCard, read_json(folder / "card.json"), str(folder / "card.json"))


def add_to_card(folder: Path, figures: Mapping[str, Mapping[str, Figure]], section: Sequence[str], before: str) -> None:
    """Change both files of a card.

    Args:
        folder: of the model; a copy that `changed_folder` gives.
        figures: by split and name. Other figures stay.
        section: its lines; the first one is the title.
        before: the title of the section that it stands before, where the page does not have it yet.
    """
    card = read_card(folder)
    merged = {split: {**card.figures.get(split, {}), **found} for split, found in figures.items()}
    changed = to_dict(replace(card, figures={**card.figures, **merged}))
    (folder / "card.json").write_text(json.dumps(changed, indent=1) + "\n", encoding="utf-8")
    page = folder / "card.md"
    page.write_text(with_section(page.read_text(encoding="utf-8"), section, before), encoding="utf-8")


def with_section(page: str, section: Sequence[str], before: str) -> str:
    """A page with a section, in place of the one of this title, or before another one. An empty line follows it."""
    title = section[0]
    start, end = page.find(f"{title}\n"), page.find(f"{before}\n")
    if start >= 0:
        end = page.find("\n## ", start) + 1
    else:
        start = end
    return page[:start] + "\n".join([*section, "", ""]) + page[end:]
