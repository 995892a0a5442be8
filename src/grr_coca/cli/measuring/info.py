"""`grr-coca info`."""

from collections.abc import Sequence
from typing import Annotated

import tyro

from grr_coca.cli.measuring.step_forecast import step_forecast
from grr_coca.config import CoCaConfig
from grr_coca.errors import UserError
from grr_coca.model import CoCa, build
from grr_coca.presets import get_preset
from grr_coca.structure import differences
from grr_coca.study.anatomy import count_parameters, flops_per_pair, parts, share_that_differs

SHORTEST = 4
"""Tokens: a word between begin, end and class token."""


def run(
    preset: Annotated[str, tyro.conf.Positional],
    other: Annotated[str | None, tyro.conf.Positional] = None,
    size: str = "tiny",
    batch: int | None = None,
    text_length: int | None = None,
) -> None:
    """Show what a preset is made of, and what a training step should take here, or what two presets differ in.

    Args:
        preset: name of a preset.
        other: a second one to hold against it.
        size: tiny, small, base or b32.
        batch: pairs of a training step whose time and memory on this machine shall be foretold.
        text_length: tokens of a caption to count for too, begin, end and class token included.
    """
    config = get_preset(preset, size)
    _require_sense(config, other, batch, text_length)
    context = config.text_decoder.context_length
    lengths = [context] if text_length in (None, context) else [context, text_length]
    if other is None:
        _print_tree(preset, size, config, lengths)
        if batch is not None:
            print("\n" + step_forecast(config, batch, lengths))
    else:
        _print_differences((preset, other), size, (config, get_preset(other, size)))


def _require_sense(config: CoCaConfig, other: str | None, batch: int | None, text_length: int | None) -> None:
    context = config.text_decoder.context_length
    if other is not None and (batch, text_length) != (None, None):
        raise UserError("--batch and --text-length are about one preset; name one")
    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch} is out of range; give 1 or more")
    if text_length is not None and not SHORTEST <= text_length <= context:
        raise UserError(f"--text-length {text_length} is out of range; give {SHORTEST} to {context}")


def _print_tree(preset: str, size: str, config: CoCaConfig, lengths: Sequence[int]) -> None:
    model = build(config)
    total = count_parameters(model)
    print(f"{preset}, size {size}")
    for part in parts(model):
        name = "  " * len(part.path) + part.path[-1] + (f" × {part.count}" if part.count > 1 else "")
        print(f"{name:<34}{part.kind:<20}{part.num_parameters:>13,}  {part.num_parameters / total:6.1%}")
    print(f"{'total':<54}{total:>13,}")
    for length in lengths:
        print(_flops_line(config, length))


def _print_differences(names: tuple[str, str], size: str, configs: tuple[CoCaConfig, CoCaConfig]) -> None:
    models = (build(configs[0]), build(configs[1]))
    print(f"{names[0]} against {names[1]}, size {size}\n")
    print(f"{'part':<24}{names[0]:>20}{names[1]:>20}")
    for name, first in models[0].named_children():
        counts = (count_parameters(first), count_parameters(models[1].get_submodule(name)))
        print(f"{name:<24}{counts[0]:>20,}{counts[1]:>20,}")
    totals = [count_parameters(model) for model in models]
    print(f"{'all parameters':<24}{totals[0]:>20,}{totals[1]:>20,}   ({totals[0] / totals[1] - 1:+.2%})")
    flops = [flops_per_pair(config) for config in configs]
    print(f"{'FLOPs per pair, forward':<24}{flops[0]:>20,}{flops[1]:>20,}   ({flops[0] / flops[1] - 1:+.2%})\n")
    for key, first_value, second_value in differences(*configs):
        print(f"{key:<44}{first_value!s:>12}{second_value!s:>12}")
    print(f"\n{_shares(names, models)}")


def _shares(names: tuple[str, str], models: tuple[CoCa, CoCa]) -> str:
    shares = (share_that_differs(*models), share_that_differs(*reversed(models)))
    return f"parameters in parts that differ: {shares[0]:.1%} of {names[0]}, {shares[1]:.1%} of {names[1]}"


def _flops_line(config: CoCaConfig, text_length: int) -> str:
    forward = flops_per_pair(config, text_length)
    return (
        f"FLOPs per pair, caption of {text_length} tokens: "
        f"{forward / 1e9:.3f} GFLOP forward, {3 * forward / 1e9:.3f} in training"
    )
