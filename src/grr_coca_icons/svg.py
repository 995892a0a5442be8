"""Recognize SVG files, and render them in subprocesses; see `grr_coca.data.isolated`.

resvg, which the extra `[icons]` installs, renders the files. It is written in Rust, and holds Python's lock while it
renders. If it ran in this process, a file of 190 bytes could abort the program, and another file could block all
threads for minutes.
"""

from PIL import Image

from grr_coca.data.isolated import Content, helpers
from grr_coca.data.sources.base import BadSample, Cause

_HEAD_BYTES = 4096
"""Number of bytes within which the first tag of an SVG file must start, after comments and declarations."""

_RENDERER = "grr_coca_icons.svg_drawing"
_CPU_SECONDS = 5.0
"""Maximum processor time for a drawing, in seconds. The slowest of 2,000 drawings of Open Clip Art took 0.2 seconds."""


def is_svg(data: bytes) -> bool:
    """Return whether the bytes of a file are SVG. The file name does not matter."""
    head = data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!")) and b"<svg" in head)


def render_svg(svg: str, side: int) -> Image.Image:
    """Render an SVG document as an RGBA square of `side` pixels. Oblong drawings are centred.

    Raises:
        BadSample: If the document cannot be rendered, rendering exceeds a limit, or resvg-py is not installed.
    """
    name = "a drawing"
    content = Content(svg.encode(), name, cpu_seconds=_CPU_SECONDS)
    facts, pixels = helpers.call(_RENDERER, "svg_pixels", content, side=side)
    if facts != {"mode": "RGBA"} or len(pixels) != 4 * side * side:
        raise BadSample(f"{name}: the renderer did not return {side} × {side} RGBA pixels", Cause.BROKEN_IMAGE)
    return Image.frombuffer("RGBA", (side, side), pixels, "raw", "RGBA", 0, 1)  # type: ignore[arg-type]


class SvgFormat:
    """SVG as an image format of the core, see `grr_coca.data.isolated.VectorFormat`."""

    renderer = _RENDERER
    cpu_seconds = _CPU_SECONDS

    def recognizes(self, data: bytes) -> bool:
        """Return whether the bytes of a file are SVG."""
        return is_svg(data)


FORMAT = SvgFormat()
