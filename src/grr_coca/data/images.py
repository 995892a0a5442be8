"""Decoding of whatever a file holds into an RGB image, or an error that says what is wrong with it."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from grr_coca.errors import UserError

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})

MAX_PIXELS = 100_000_000
"""Larger images are refused from their header, before a pixel is decoded."""


def decode_image(data: bytes, name: str) -> Image.Image:
    """An RGB image from the bytes of a file of any format that Pillow reads.

    Of an animation the first frame counts; EXIF rotation is honoured; transparency is composited over white;
    16-bit and floating-point grey is scaled to 8 bits.

    Args:
        data: the file's content.
        name: what to call it in messages.

    Raises:
        UserError: not an image, truncated, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata, without a file's name; ours is the decision, below.
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(_too_large(name, width, height))
            image.load()
            image = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise UserError(_too_large(name)) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: not an image in a format that can be read") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: broken or truncated image ({error})") from error
    return _to_rgb(image)


def _too_large(name: str, width: int = 0, height: int = 0) -> str:
    size = f"{width} × {height}" if width else "far too many"
    return f"{name}: {size} pixels are more than the limit of {MAX_PIXELS:,}; scale the image down first"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        # Floating point has no agreed range: its own extremes become black and white.
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low
        values *= 65535 / max(high - low, 1e-12)
    return Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An RGB image of one that Pillow has opened, treated as `decode_image` treats a file."""
    return _to_rgb(ImageOps.exif_transpose(image))
