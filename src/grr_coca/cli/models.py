"""`grr-coca models`."""

import json as json_format
from typing import Annotated

import tyro

from grr_coca.registry import DEFAULT, FOLDER, ModelCard, shipped_models
from grr_coca.structure import to_dict

SHOWN = {"text_to_image/R@1": "R@1", "exact_captions": "captions exactly right"}


def run(json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False) -> None:
    """List the models that come with the code, with their size, data and figures.

    Args:
        json: print one JSON object, with every figure and its interval.
    """
    cards = shipped_models()
    if json:
        print(json_format.dumps({name: to_dict(card) for name, card in cards.items()}))
        return
    for card in cards.values():
        print(_described(card))


def _described(card: ModelCard) -> str:
    megabytes = sum(path.stat().st_size for path in (FOLDER / card.name).iterdir()) / 1e6
    mark = " (used where no checkpoint is given)" if card.name == DEFAULT else ""
    lines = [
        f"{card.name}{mark}: {card.summary}",
        f"  {card.preset}, {card.parameters:,} parameters, {megabytes:.1f} MB; {card.licence}",
        f"  trained on {card.data}",
    ]
    for split, figures in card.figures.items():
        shown = [f"{title} {figures[name].value:.1%}" for name, title in SHOWN.items() if name in figures]
        if shown:
            lines.append(f"  {split}: {', '.join(shown)}")
    return "\n".join(lines)
