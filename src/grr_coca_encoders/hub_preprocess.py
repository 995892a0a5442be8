"""Preprocessing from the `preprocessor_config.json` of models on the Hugging Face hub and of exported graphs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.data.preprocess import EncoderPreprocess, Interpolation

FILE = "preprocessor_config.json"
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Interpolation methods, by Pillow's numbers."""


def read_hub_preprocess(path: Path, size: int | None) -> EncoderPreprocess:
    """Read the preprocessing of an encoder.

    Args:
        path: Path of `preprocessor_config.json`.
        size: Image size to use instead of the size in the file. If None, the size in the file is used.

    Raises:
        UserError: If the file is missing or corrupt, or its preprocessing does not produce square images, scales pixels
            by another factor than 1/255, or resizes by an unsupported method.
    """
    content = read_json(path)
    try:
        return _parse(content, size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: not the preprocessing of an image encoder ({error!r}); see docs/encoders.md"
        ) from error


def _parse(content: Mapping[str, Any], size: int | None) -> EncoderPreprocess:
    if not math.isclose(float(content.get("rescale_factor", 1 / 255)), 1 / 255, rel_tol=1e-3):
        raise UserError(f"rescale_factor must be 1/255, got {content['rescale_factor']}")
    is_normalized = bool(content.get("do_normalize", True))
    given = content.get("size", content.get("crop_size"))
    resized = {"shortest_edge": given} if isinstance(given, int) else dict(given)
    cropped = _side(content["crop_size"]) if content.get("do_center_crop") else None
    if "shortest_edge" in resized:
        shorter = int(resized["shortest_edge"])
        if cropped is None and isinstance(given, int):  # older files have one number for both sides
            fit, crop, side = "squash", 1.0, shorter
        elif cropped is None:
            raise UserError("do_center_crop must be true if size is a shortest_edge, because the encoder takes squares")
        elif not 1 <= cropped <= shorter:
            raise UserError(f"crop_size must be from 1 to {shorter}, the shortest_edge, got {cropped}")
        else:
            fit, crop, side = "crop", cropped / shorter, cropped
    else:
        side = _side(resized)
        fit, crop = "squash", 1.0
        if cropped not in (None, side):
            raise UserError(f"crop_size must equal size, {side}, got {cropped}")
    number = int(content.get("resample", 3))
    if number not in _INTERPOLATIONS:
        raise UserError(f"resample must be one of {sorted(_INTERPOLATIONS)}, got {number}")
    return EncoderPreprocess(
        image_size=size or side,
        mean=_channels(content["image_mean"]) if is_normalized else (0.0, 0.0, 0.0),
        std=_channels(content["image_std"]) if is_normalized else (1.0, 1.0, 1.0),
        order="resize_then_crop",
        fit="crop" if fit == "crop" else "squash",
        crop=crop,
        interpolation=cast("Interpolation", _INTERPOLATIONS[number]),
    )


def _side(given: "int | Mapping[str, int]") -> int:
    if isinstance(given, int):
        return given
    if given["height"] != given["width"]:
        raise UserError(f"images must be squares, got {given['height']} × {given['width']} pixels")
    return int(given["height"])


def _channels(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
