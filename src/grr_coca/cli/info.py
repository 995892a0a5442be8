"""`grr-coca info` and `models`: describe presets, and list the models that have names."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.flags import Flag
from grr_coca.common import plugins
from grr_coca.common.dict_to_dataclass import differences, to_dict
from grr_coca.common.errors import UserError, require_extra
from grr_coca.common.files import read_json
from grr_coca.infer.load import ENGINE_TITLES, ModelProvider, choose_engine
from grr_coca.model.checkpoint_files import DEFAULT, FOLDER, ModelCard, bundled_models, read_config
from grr_coca.model.presets import get_preset

_MIN_LENGTH = 4
"""Number of tokens in the shortest caption: one word, and the begin, end and class tokens."""
_SHOWN_FIGURES = {"text_to_image/R@1": "R@1", "exact_captions": "captions exactly right"}


def describe_preset(
    preset: Annotated[str, tyro.conf.Positional],
    other: Annotated[str | None, tyro.conf.Positional] = None,
    size: str = "tiny",
    text_length: int | None = None,
) -> None:
    """Count the parameters and FLOPs of a preset, or compare two presets. A training step costs as much as three
    forward passes.

    Args:
        preset: name of a preset.
        other: a second preset to compare with.
        size: tiny, small, base, b32 or l14.
        text_length: also count for captions of this many tokens, including the begin, end and class tokens.
    """
    names = [preset] if other is None else [preset, other]
    configs = [get_preset(name, size) for name in names]
    context = min(config.text_decoder.context_length for config in configs)
    if text_length is not None and not _MIN_LENGTH <= text_length <= context:
        raise UserError(f"--text-length must be from {_MIN_LENGTH} to {context}, got {text_length}")
    require_extra("torch", "counting parameters and FLOPs of a preset")
    from grr_coca.model.anatomy import count_parameters, flops_per_pair  # lazy import: PyTorch
    from grr_coca.model.build import build_without_weights

    models = [build_without_weights(config) for config in configs]
    parts = [{name: count_parameters(part) for name, part in model.named_children()} for model in models]
    print(f"{' against '.join(names)}, size {size}\n")
    for name in dict.fromkeys(name for of_model in parts for name in of_model):
        print(_row(name, [of_model.get(name, 0) for of_model in parts]))
    print(_row("all parameters", [count_parameters(model) for model in models], compare=True))
    for length in dict.fromkeys((context, text_length or context)):
        flops = [flops_per_pair(config, length) for config in configs]
        print(_row(f"FLOPs per pair, forward, {length} tokens", flops, compare=True))
    if len(configs) == 2:
        print()
        for key, *values in differences(*configs):
            print(f"{key:<48}{values[0]!s:>20}{values[1]!s:>20}")


def list_models(json: Flag = False) -> None:
    """List the models that can be used by name, with their size, data, metrics and engine on this machine.

    Some models are bundled with the code. Models for photographs are downloaded from the Hugging Face hub at first use.

    Args:
        json: print one JSON object, with all metrics and their intervals.
    """
    cards = bundled_models()
    engines = {name: _local_engine(FOLDER / name) for name in cards}
    providers: list[ModelProvider] = list(plugins.values("grr_coca.models"))
    if json:
        bundled = {name: {**to_dict(card), "engine": engines[name]} for name, card in cards.items()}
        others = {name: row for provider in providers for name, (row, _) in provider.listed(_local_engine).items()}
        print(json_format.dumps({**bundled, **others}))
        return
    for name, card in cards.items():
        print(_format_card(card, ENGINE_TITLES[engines[name]]))
    for provider in providers:
        print(f"\n{provider.heading}")
        for _, lines in provider.listed(_local_engine).values():
            print(lines)


def _local_engine(folder: Path) -> str:
    return choose_engine(folder, read_config(read_json(folder / "config.json")["model"], str(folder)))


def _row(title: str, counts: Sequence[int], *, compare: bool = False) -> str:
    change = f"   ({counts[0] / counts[1] - 1:+.2%})" if compare and len(counts) == 2 else ""
    return f"{title:<36}" + "".join(f"{count:>20,}" for count in counts) + change


def _format_card(card: ModelCard, engine: str) -> str:
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
