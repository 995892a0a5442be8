"""From a drawing to the bytes of a 64 × 64 WebP. Everything here is a pure function of its input."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from grr_coca.data import svg as svg_files

SIZE = 64
DRAWN = 4 * SIZE  # pixels of the longest side before cropping
VISIBLE = 32  # opacity, of 255; what is below it are faint shadows
Pixels = np.ndarray  # uint8, (SIZE, SIZE, 3)


def render_svg(svg: str, side: int) -> Image.Image | None:
    """Draw over a transparent square; None where resvg refuses. No system fonts: they differ by machine."""
    try:
        return svg_files.render_svg(svg, side)
    except ValueError:
        return None


def on_white(image: Image.Image) -> Image.Image:
    """Composite over white: the models see RGB, and black line art would vanish on black."""
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def render_icon(svg: str) -> Image.Image | None:
    """Draw an icon into SIZE × SIZE on white, oblong ones in the middle; None where nothing is to be seen."""
    image = render_svg(svg, SIZE)
    if image is None or image.getchannel("A").getbbox() is None:
        return None
    return on_white(image)


def render_cropped(svg: str) -> Image.Image | None:
    """Draw an icon, cut it to what is visible and centre that with a narrow margin; None where nothing is.

    Icon sets differ in their margins; cut, two drawings of a thing have their parts in the same places.
    """
    image = render_svg(svg, DRAWN)
    box = image and image.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox()
    return fit_square(on_white(image), box) if image and box else None


def ink_box(image: Image.Image, threshold: int = 12) -> tuple[int, int, int, int] | None:
    """Bounding box of everything that differs visibly from white."""
    differs = (255 - np.asarray(image).min(axis=2)) > threshold
    if not differs.any():
        return None
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def fit_square(image: Image.Image, box: tuple[int, int, int, int], margin: float = 0.04) -> Image.Image:
    """Crop to the box, pad with white to a square, and bring it to SIZE."""
    cut = image.crop(box)
    side = round(max(cut.size) * (1 + 2 * margin))
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def to_grey_levels(image: Image.Image, levels: int = 16) -> Image.Image:
    """Round grey to a few levels: line art loses nothing visible and lossless WebP halves."""
    step = 255 / (levels - 1)
    grey = np.asarray(image.convert("L")).astype(np.float64)
    return Image.fromarray(np.rint(np.rint(grey / step) * step).astype(np.uint8)).convert("RGB")


def encode_webp(image: Image.Image, quality: int | None) -> bytes:
    """Lossy at a quality, or lossless with None."""
    if image.size != (SIZE, SIZE) or image.mode != "RGB":
        raise ValueError(f"expected {SIZE} x {SIZE} RGB, got {image.size} {image.mode}")
    out = io.BytesIO()
    if quality is None:
        image.save(out, "WEBP", lossless=True, quality=100, method=6)
    else:
        image.save(out, "WEBP", quality=quality, method=6)
    return out.getvalue()


def decode(webp: bytes) -> Pixels:
    """Pixels as a reader will see them: duplicates are judged on these, not on the drawing."""
    return np.asarray(Image.open(io.BytesIO(webp)).convert("RGB"))
