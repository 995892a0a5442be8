"""Convert paths, Pillow images, arrays and tensors to RGB images.

Shapes: H height, W width, C channels (1 for grey, 3 for RGB, 4 for RGB and alpha).
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_file_bytes
from grr_coca.data.images import BROKEN, Opening, open_rgb
from grr_coca.data.isolated import decode_image

if TYPE_CHECKING or sys.modules.get("torch"):
    from torch import Tensor
else:  # PyTorch may not be imported yet, or may not be installed
    Tensor = Any

ImageInput = str | Path | Image.Image | np.ndarray | Tensor
"""An image: a path, a Pillow image, an array H W or H W C, or a tensor H W or C H W. The values of arrays and tensors
are uint8, or floating-point numbers in 0 … 1."""
ImagesInput = ImageInput | Iterable[ImageInput]
"""One or several images. An array or tensor with four dimensions contains several images."""

_CHANNELS = (1, 3, 4)


def to_rgb(image: ImageInput, name: str, opening: Opening = "upright_on_white") -> Image.Image:
    """Convert an image of any accepted form to RGB.

    Args:
        image: See `ImageInput`. Pillow images are treated like files: EXIF rotation is applied, and transparency is
            composited over white.
        name: Name in messages for an image without a path.
        opening: How to open a file or Pillow image: `as_stored` ignores EXIF rotation, transparency and colour
            profiles. The transparency of arrays and tensors is always composited over white.

    Raises:
        UserError: If a file or Pillow image cannot be read or decoded, an array or tensor has a wrong shape, type or
            range, or the image has an unsupported type.
    """
    if isinstance(image, str | Path):
        return decode_image(read_file_bytes(image), str(image), opening, to_srgb=True)
    if isinstance(image, Image.Image):
        return _from_pillow(image, name, opening)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if _is_tensor(image):
        return _from_tensor(image, name)
    raise UserError(
        f"{name}: unsupported type {type(image).__name__}; pass a path, a Pillow image, a NumPy array or a torch tensor"
    )


def _is_tensor(image: object) -> TypeGuard[Tensor]:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _from_pillow(image: Image.Image, name: str, opening: Opening) -> Image.Image:
    try:
        return open_rgb(image, opening, to_srgb=True, is_scaled=True)
    except BROKEN as error:  # Pillow opened the image lazily, and its file is truncated or closed
        raise UserError(f"{name}: corrupt, truncated or closed image ({error}); open it again") from error


def _from_tensor(image: Tensor, name: str) -> Image.Image:
    image = image.detach().cpu()
    if str(image.dtype) == "torch.bfloat16":
        image = image.float()  # NumPy has no bfloat16
    if image.ndim == 3 and image.shape[0] not in _CHANNELS:
        raise UserError(f"{name}: a tensor must be H W or C H W with 1, 3 or 4 channels, got {_size(image.shape)}")
    return _from_array(image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy(), name)


def _from_array(image: np.ndarray, name: str) -> Image.Image:
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in _CHANNELS):
        raise UserError(f"{name}: an array must be H W or H W C with 1, 3 or 4 channels, got {_size(image.shape)}")
    pixels = _to_uint8(image, name)
    return open_rgb(Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))


def _to_uint8(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if not np.issubdtype(image.dtype, np.floating):
        raise UserError(f"{name}: values must be uint8 in 0 … 255 or floating point in 0 … 1, got {image.dtype}")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # the comparison is also false for NaN
        raise UserError(
            f"{name}: floating point values must be within 0 … 1, got {low:g} … {high:g}; do not "
            f"normalize images, the model does"
        )
    return np.ascontiguousarray((image * 255).round().astype(np.uint8))


def _size(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
