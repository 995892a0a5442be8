"""Recognition of SVG files, and drawing in helper programs, see `grr_coca.data.isolated`.

resvg draws them, which the extra `[icons]` installs. It is written in Rust and holds Python's lock while it draws: in
this process, a file of 190 bytes could abort the program, and another could block all threads for minutes.
"""

from PIL import Image

from grr_coca.data.isolated import Content, helpers
from grr_coca.data.sources.base import BadSample, Cause

_HEAD_BYTES = 4096
"""Number of bytes in which the first tag of an SVG file must start, after comments and declarations."""

_RENDERER = "grr_coca_icons.svg_drawing"
_CPU_SECONDS = 5.0
"""Maximum processor time of a drawing in seconds. The slowest of 2,000 drawings of Open Clip Art took 0.2 seconds."""


def is_svg(data: bytes) -> bool:
    """Return whether the bytes of a file are SVG. The file name does not matter."""
    head = data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!")) and b"<svg" in head)


def render_svg(svg: str, side: int) -> Image.Image:
    """Draw an SVG as an RGBA square of `side` pixels, centred if it is oblong.

    Raises:
        BadSample: If it cannot be drawn, or drawing exceeds a limit.
    """
    name = "a drawing"
    content = Content(svg.encode(), name, cpu_seconds=_CPU_SECONDS)
    facts, pixels = helpers.call(_RENDERER, "svg_pixels", content, side=side)
    if facts != {"mode": "RGBA"} or len(pixels) != 4 * side * side:
        raise BadSample(f"{name}: {len(pixels)} bytes of {side} × {side} pixels", Cause.BROKEN_IMAGE)
    return Image.frombuffer("RGBA", (side, side), pixels, "raw", "RGBA", 0, 1)  # type: ignore[arg-type]


class SvgFormat:
    """SVG for the core: a `grr_coca.data.isolated.VectorFormat`."""

    renderer = _RENDERER
    cpu_seconds = _CPU_SECONDS

    def recognizes(self, data: bytes) -> bool:
        """Return whether the bytes of a file are SVG."""
        return is_svg(data)


FORMAT = SvgFormat()
