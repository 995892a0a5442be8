"""Draws SVG files, with resvg. It comes with the extra `[icons]`."""

import io
import re
from importlib.util import find_spec
from xml.parsers import expat

from PIL import Image

from grr_coca.data.bad import BadSample, Cause

SIDE = 256
"""Pixels of the longer side of a drawing, which has no size of its own. Models see it scaled down."""

HEAD_BYTES = 4096
"""Where the first tag of an SVG file must begin, after comments and declarations."""

FILE_TAGS = re.compile(r"<(?:[^\s<>/:]+:)?(?:image|feImage)(?![^\s<>/])")
"""Elements by which resvg reads other files, with any prefix of the namespace. An entity cannot hide them: resvg takes
`&#60;` and `&lt;` in the text of an entity as text."""


MOST_LEVELS = 100
"""Elements within one another. At a few hundred, resvg uses up its stack, and ends the process."""

COSTLY = {"feTurbulence": "numOctaves", "feConvolveMatrix": "order", "feMorphology": "radius"}
"""Filters by which a few bytes take hours to draw, and the attribute that says how long."""

MOST_COST = 32.0
"""The sum of these attributes in a drawing."""


def is_svg(data: bytes) -> bool:
    """True if the bytes of a file are SVG, whatever the file is called."""
    head = data[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!")) and b"<svg" in head)


def draw_svg(data: bytes, name: str) -> Image.Image:
    """An SVG file as a square of `SIDE` pixels, drawn over transparency, oblong ones in the middle.

    Nothing is read besides it: no fonts of the system, and no other image.

    Raises:
        BadSample: it cannot be drawn, or resvg is not installed.
    """
    if find_spec("resvg_py") is None:
        message = f"{name}: an SVG file, which needs resvg-py; pip install 'grr-coca[icons]'"
        raise BadSample(message, Cause.NOT_INSTALLED)
    try:
        svg = data.decode("utf-8-sig")
        _require_drawable(svg)
        image = render_svg(svg, SIDE)
    except (ValueError, expat.ExpatError) as error:
        raise BadSample(f"{name}: an SVG file that cannot be drawn ({error})", Cause.BROKEN_IMAGE) from error
    image.format = "SVG"
    return image


def _require_drawable(svg: str) -> None:
    """Make sure that the drawing ends.

    Raises:
        ValueError: it is nested too deeply, or a filter would take too long.
        ExpatError: it is not XML.
    """
    level, cost = 0, 0.0

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal level, cost
        level += 1
        if level > MOST_LEVELS:
            raise ValueError(f"more than {MOST_LEVELS} elements within one another")
        written = attributes.get(COSTLY.get(name.rpartition(":")[2], ""), "0")
        cost += sum(map(float, re.split(r"[\s,]+", written.strip())))
        if not cost <= MOST_COST:  # false for what is no number too
            raise ValueError(f"its filters, as {name} of {written}, would take too long")

    def end(_: str) -> None:
        nonlocal level
        level -= 1

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.Parse(svg, True)


def render_svg(svg: str, side: int) -> Image.Image:
    """An SVG as an RGBA square of `side` pixels, in the middle if it is oblong.

    Raises:
        ValueError: it cannot be drawn.
    """
    import resvg_py  # late: it comes with an extra

    if FILE_TAGS.search(svg):
        raise ValueError("it shows another image; give that one")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, dpi=96, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if drawn.size == (side, side):
        return drawn
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square
