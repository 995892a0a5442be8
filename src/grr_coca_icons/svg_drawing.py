"""Render SVG files with resvg, in subprocesses; see `svg.py`."""

import codecs
import io
import re
from typing import Any

from PIL import Image

from grr_coca.common.errors import pip_install_command
from grr_coca.data.images import VECTOR_SIDE
from grr_coca.data.sources.base import BadSample, Cause

try:
    import resvg_py
except ImportError:
    resvg_py = None  # type: ignore[assignment]

Image.preinit()  # imports formats, before a subprocess can no longer open files

_FILE_TAGS = re.compile(r"<(?:[^\s<>/:]+:)?(?:image|feImage)(?![^\s<>/])")
"""Elements, with any namespace prefix, that make resvg read other files. An entity cannot hide them, because resvg
treats `&#60;` and `&lt;` in an entity as text."""


def render(data: bytes, name: str, side: int) -> Image.Image:
    """Render an SVG file as a transparent square. Oblong drawings are centred.

    No other file is read, neither system fonts nor other images.

    Args:
        data: Content of the file.
        name: Name of the file in messages.
        side: Side of the square in pixels. If the drawing fills less than half of both sides, the square has
            `VECTOR_SIDE` pixels per side unless `side` is larger, because the drawing may later be cropped and
            enlarged.

    Raises:
        BadSample: If the file cannot be rendered, or resvg-py is not installed.
    """
    image = _render_square(data, name, side)
    if side < VECTOR_SIDE and _is_small(image):
        image = _render_square(data, name, VECTOR_SIDE)
    image.format = "SVG"
    return image


def svg_pixels(data: bytes, name: str, *, side: int) -> tuple[dict[str, Any], bytes]:
    """Render an SVG file as a square with exactly the given side S, for `grr_coca_icons.svg.render_svg`.

    Returns:
        The pixel format, `{"mode": "RGBA"}`, and the bytes of the pixels (S S 4).
    """
    image = _render_square(data, name, side)
    return {"mode": image.mode}, image.tobytes()


def _is_small(image: Image.Image) -> bool:
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, *image.size)
    return 2 * max(right - left, bottom - top) < image.width


def _render_square(data: bytes, name: str, side: int) -> Image.Image:
    """Render an SVG file as a square with the given side. The errors are those of `render`."""
    if resvg_py is None:
        message = f"{name}: an SVG file, which needs resvg-py; run: {pip_install_command('resvg-py')}"
        raise BadSample(message, Cause.NOT_INSTALLED)
    try:
        svg = data.removeprefix(codecs.BOM_UTF8).decode()
        if _FILE_TAGS.search(svg):
            raise ValueError("it contains another image file; use that file instead")
        png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, dpi=96, skip_system_fonts=True)
        drawn = Image.open(io.BytesIO(bytes(png)), formats=("PNG",)).convert("RGBA")
    except MemoryError:
        raise
    except BaseException as error:  # a Rust panic is not an `Exception`
        reason = str(error) or type(error).__name__
        raise BadSample(f"{name}: an SVG file that cannot be drawn ({reason[:1000]})", Cause.BROKEN_IMAGE) from error
    if drawn.size == (side, side):
        return drawn
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square
