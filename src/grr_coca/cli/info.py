"""`grr-coca info`."""

from typing import Annotated

import tyro

from grr_coca.config import CoCaConfig
from grr_coca.errors import UserError
from grr_coca.presets import get_preset

SHORTEST = 4
"""The fewest tokens of a caption: a word, and the begin, end and class tokens."""


def run(
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
        batch: forecast time and memory of a training step of this many pairs on this machine.
        text_length: also count for captions of this many tokens, including the begin, end and class tokens.
    """
    config = get_preset(preset, size)
    other_config = None if other is None else get_preset(other, size)
    _require_sense(config, other, batch, text_length)
    context = config.text_decoder.context_length
    lengths = [context] if text_length in (None, context) else [context, text_length]

    from grr_coca.cli.anatomy import print_differences, print_tree, step_forecast  # late: torch comes with it

    if other is not None and other_config is not None:
        print_differences((preset, other), size, (config, other_config))
        return
    print_tree(preset, size, config, lengths)
    if batch is not None:
        print("\n" + step_forecast(config, batch, lengths))


def _require_sense(config: CoCaConfig, other: str | None, batch: int | None, text_length: int | None) -> None:
    context = config.text_decoder.context_length
    if other is not None and (batch, text_length) != (None, None):
        raise UserError("--batch and --text-length are about one preset; name one")
    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch} is out of range; give 1 or more")
    if text_length is not None and not SHORTEST <= text_length <= context:
        raise UserError(f"--text-length {text_length} is out of range; give {SHORTEST} to {context}")
