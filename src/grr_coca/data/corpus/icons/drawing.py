"""An icon as a picture: 64 × 64 pixels, black on white, as WebP. A pure function of its SVG.

Shapes: S = 64 pixels a side.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from grr_coca.data.svg import render_svg

SIZE = 64
GREY_LEVELS = 16
QUALITY = 75
SIGNATURE_SIDE = 16
INK = 24
"""Difference from white, of 255, from which a pixel counts as ink when a picture is cut to its ink."""

_TO_LEVELS = [(value * (GREY_LEVELS - 1) + 127) // 255 * (255 // (GREY_LEVELS - 1)) for value in range(256)]


@dataclass(frozen=True)
class Drawing:
    """A drawn icon. `digest` is of its decoded pixels; `signature` is the picture cut to its ink, in 16 × 16 greys."""

    webp: bytes
    digest: bytes
    signature: UInt8[np.ndarray, "16 16"]


def icon_svg(icon: Mapping, defaults: Mapping) -> str:
    """A whole SVG of an icon as Iconify keeps it: a body, and a box whose sides its set may give."""
    box = {"left": 0, "top": 0, "width": 16, "height": 16}
    left, top, width, height = (icon.get(key, defaults.get(key, value)) for key, value in box.items())
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    view = f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}"'
    return f"<svg {names} {view}>{icon['body']}</svg>"


def draw_icon(svg: str) -> Drawing | None:
    """Draw over white, oblong pictures in the middle; None where nothing is to be seen.

    Raises:
        ValueError: it is no SVG that can be drawn.
    """
    image = render_svg(svg, SIZE)
    if image.getchannel("A").getbbox() is None:
        return None
    canvas = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 255))
    canvas.alpha_composite(image)
    webp, pixels = _compress(canvas.convert("RGB"))
    signature = picture_signature(pixels)
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
    return None if signature is None else Drawing(webp, digest, signature)


def _compress(image: Image.Image) -> tuple[bytes, Image.Image]:
    """The bytes of a picture and what they decode to: grey ones in 16 levels without loss, coloured ones with."""
    file = io.BytesIO()
    pixels = np.asarray(image)
    if (pixels == pixels[..., :1]).all():
        image = image.convert("L").point(_TO_LEVELS).convert("RGB")
        image.save(file, "WEBP", lossless=True, quality=100, method=2)
        return file.getvalue(), image
    image.save(file, "WEBP", quality=QUALITY, method=4)
    return file.getvalue(), Image.open(file).convert("RGB")


def picture_signature(image: Image.Image) -> UInt8[np.ndarray, "16 16"] | None:
    """A picture on white cut to its ink and brought to 16 × 16 greys; None where it is all white."""
    grey = image.convert("L")
    box = grey.point(lambda value: 255 * (value <= 255 - INK)).getbbox()
    if box is None:
        return None
    side = max(box[2] - box[0], box[3] - box[1])
    square = Image.new("L", (side, side), 255)
    square.paste(grey.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
    return np.asarray(square.resize((SIGNATURE_SIDE, SIGNATURE_SIDE), Image.Resampling.BOX))
