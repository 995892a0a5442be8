"""Names of image encoders, such as `timm:MODEL[@SIZE][=WEIGHTS]`."""

import re
from pathlib import Path
from typing import NamedTuple

from grr_coca.common.errors import UserError

RANDOM = "random"
_MAX_SIZE = 4096


class EncoderName(NamedTuple):
    """Name of an encoder. After its scheme, it has the form `MODEL[@SIZE][=WEIGHTS]`.

    Attributes:
        text: Full name, including the scheme.
        model: Name of the model, or its folder.
        size: Image size in pixels. None means the model's default size.
        weights: A safetensors file, or `random`. None means the published weights.
    """

    text: str
    model: str
    size: int | None
    weights: str | None


def parse_name(scheme: str, rest: str) -> EncoderName:
    """Parse the name of an encoder.

    Args:
        scheme: Text before the colon, such as `timm`.
        rest: Text after the colon.

    Raises:
        UserError: If the model is missing, the size is out of range, or the weights file cannot be used.
    """
    text = f"{scheme}:{rest}"
    model, equals, weights = rest.partition("=")
    found = re.fullmatch(r"(.+)@(\d+)", model)
    size = None if found is None else int(found[2])
    model = model if found is None else found[1]
    if not model:
        raise UserError(f"{text}: the name of the model is missing; use {scheme}:NAME")
    if size is not None and not 1 <= size <= _MAX_SIZE:
        raise UserError(f"{text}: the image size must be from 1 to {_MAX_SIZE}, got {size}")
    if equals and weights != RANDOM:
        if not weights.endswith(".safetensors"):
            raise UserError(f"{text}: weights must be a .safetensors file or '{RANDOM}', got '{weights}'")
        if not Path(weights).is_file():
            raise UserError(f"{text}: {weights}: no such file")
    return EncoderName(text, model, size, weights if equals else None)
