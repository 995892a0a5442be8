"""What this package provides to the core, named by entry points. Importing it is cheap: PyTorch comes later."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from grr_coca.common.errors import UserError
from grr_coca.common.extras import require_extra
from grr_coca.common.threads import wait_passively

if TYPE_CHECKING:
    from grr_coca.infer.encoder import VisionEncoder

RANDOM = "random"
_MAX_SIZE = 4096


class EncoderName(NamedTuple):
    """The name of an encoder after its scheme, `MODEL[@SIZE][=WEIGHTS]`.

    Attributes:
        text: The whole name, with its scheme.
        model: Model or folder.
        size: Image size in pixels; None: its own.
        weights: A safetensors file, or `random`; None: those that were published under this name.
    """

    text: str
    model: str
    size: int | None
    weights: str | None


def parse_name(scheme: str, rest: str) -> EncoderName:
    """Parse the name of an encoder.

    Raises:
        UserError: The model is missing, the size is out of range, or the file of weights cannot be used.
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


def open_timm(rest: str, device: str | None) -> "VisionEncoder":
    """Open an encoder of timm; see `grr_coca.infer.encoder.EncoderOpener`."""
    name = parse_name("timm", rest)
    require_extra("timm", name.text)
    wait_passively()
    from grr_coca_encoders.timm_encoder import load_timm  # late: imports torch

    return load_timm(name, device)


def open_transformers(rest: str, device: str | None) -> "VisionEncoder":
    """Open an encoder of transformers; see `grr_coca.infer.encoder.EncoderOpener`."""
    name = parse_name("hf", rest)
    require_extra("transformers", name.text)
    wait_passively()
    from grr_coca_encoders.transformers_encoder import load_transformers  # late: imports torch

    return load_transformers(name, device)


def open_onnx(rest: str, device: str | None) -> "VisionEncoder":  # noqa: ARG001 (ONNX Runtime uses the CPU)
    """Open an ONNX graph; see `grr_coca.infer.encoder.EncoderOpener`."""
    from grr_coca_encoders.onnx_encoder import OnnxEncoder  # late: imports NumPy

    return OnnxEncoder(Path(rest))
