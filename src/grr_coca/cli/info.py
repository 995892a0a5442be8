"""`grr-coca info` and `models`: describe presets, and list the models that can be used by name."""

import json as json_format
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.flags import Flag
from grr_coca.common import plugins
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.extras import require_extra
from grr_coca.common.files import read_json
from grr_coca.infer.load import ENGINE_TITLES, ModelProvider, choose_engine
from grr_coca.model.checkpoint_files import DEFAULT, FOLDER, ModelCard, read_config, shipped_models
from grr_coca.model.config import CoCaConfig
from grr_coca.model.presets import get_preset

_MIN_LENGTH = 4
"""Tokens of the shortest caption: one word, and the begin, end and class tokens."""
_SHOWN_FIGURES = {"text_to_image/R@1": "R@1", "exact_captions": "captions exactly right"}


def describe_preset(
    preset: Annotated[str, tyro.conf.Positional],
    other: Annotated[str | None, tyro.conf.Positional] = None,
    size: str = "tiny",
    batch: int | None = None,
    text_length: int | None = None,
) -> None:
    """Show the parts of a preset and a forecast of its training step, or the differences between two presets.

    Args:
        preset: name of a preset.
        other: a second preset to compare with.
        size: tiny, small, base, b32 or l14.
        batch: forecast time and memory of a training step with this many pairs, on this machine.
        text_length: also count for captions of this many tokens, including the begin, end and class tokens.
    """
    config = get_preset(preset, size)
    other_config = None if other is None else get_preset(other, size)
    _check(config, other, batch, text_length)
    context = config.text_decoder.context_length
    lengths = [context] if text_length in (None, context) else [context, text_length]

    require_extra("torch", "counting parameters and FLOPs of a preset")
    from grr_coca.cli.anatomy import print_differences, print_tree, step_forecast  # late: imports torch

    if other is not None and other_config is not None:
        print_differences((preset, other), size, (config, other_config))
        return
    print_tree(preset, size, config, lengths)
    if batch is not None:
        print("\n" + step_forecast(config, batch, lengths))


def list_models(json: Flag = False) -> None:
    """List the models that can be used by name, with their size, data and figures, and what computes them here.

    Some come with the code. Others, for photographs, are fetched from the Hugging Face hub at first use.

    Args:
        json: print one JSON object, with all figures and their intervals.
    """
    cards = shipped_models()
    engines = {name: _engine_here(FOLDER / name) for name in cards}
    providers: list[ModelProvider] = list(plugins.values("grr_coca.models"))
    if json:
        shipped = {name: {**to_dict(card), "engine": engines[name]} for name, card in cards.items()}
        others = {name: row for provider in providers for name, (row, _) in provider.listed(_engine_here).items()}
        print(json_format.dumps({**shipped, **others}))
        return
    for name, card in cards.items():
        print(_described(card, ENGINE_TITLES[engines[name]]))
    for provider in providers:
        print(f"\n{provider.heading}")
        for _, lines in provider.listed(_engine_here).values():
            print(lines)


def _engine_here(folder: Path) -> str:
    return choose_engine(folder, read_config(read_json(folder / "config.json")["model"], str(folder)))


def _check(config: CoCaConfig, other: str | None, batch: int | None, text_length: int | None) -> None:
    context = config.text_decoder.context_length
    if other is not None and (batch, text_length) != (None, None):
        raise UserError("--batch and --text-length are about one preset; name one")
    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch} is out of range; give 1 or more")
    if text_length is not None and not _MIN_LENGTH <= text_length <= context:
        raise UserError(f"--text-length {text_length} is out of range; give {_MIN_LENGTH} to {context}")


def _described(card: ModelCard, engine: str) -> str:
    megabytes = sum(path.stat().st_size for path in (FOLDER / card.name).iterdir()) / 1e6
    mark = " (the default)" if card.name == DEFAULT else ""
    lines = [
        f"{card.name}{mark}: {card.summary}",
        f"  {card.preset}, {card.parameters:,} parameters, {megabytes:.1f} MB; {card.licence}; runs here in {engine}",
        f"  trained on {card.data}",
    ]
    for split, figures in card.figures.items():
        shown = [f"{title} {figures[name].value:.1%}" for name, title in _SHOWN_FIGURES.items() if name in figures]
        if shown:
            lines.append(f"  {split}: {', '.join(shown)}")
    return "\n".join(lines)
