"""Draw heat maps over images, as PNG. Only this module needs matplotlib, which is imported when it is first used."""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from grr_coca.data.preprocess import Preprocess
from grr_coca.infer.explain.caption import WordMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 224
"""Size, in pixels, of the image in each panel."""
_MAX_COLUMNS = 6
_INCHES = 1.9
_OPACITY = 0.6


def caption_picture(image: Image.Image, maps: Sequence[WordMap], dpi: int = 110) -> bytes:
    """Draw a model's input image and one heat map per word, from white to red (the maximum), and return a PNG."""
    figure, panels = _panels(image, 1 + len(maps), dpi)
    _title(panels[0], "image")
    for axes, (word, heat) in zip(panels[1:], maps, strict=True):
        _title(axes, word)
        # One square per patch, without blurring, because the map has no information about pixels within a patch.
        axes.imshow(
            heat.numpy(),
            cmap="Reds",
            vmin=0.0,
            vmax=max(float(heat.max()), 1e-12),
            alpha=_OPACITY,
            extent=(0, 1, 0, 1),
            interpolation="nearest",
        )
    return _png(figure)


def _panels(image: Image.Image, count: int, dpi: int) -> tuple["Figure", "list[Axes]"]:
    """Return axes that show the image, in colour on the first axes and in grey on the others."""
    from matplotlib.figure import Figure

    columns = min(count, _MAX_COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * _INCHES, rows * (_INCHES + 0.3)), dpi=dpi, layout="constrained")
    pixels = np.asarray(Preprocess(_SIDE).square(image))
    grey = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for number, axes in enumerate(all_axes):
        axes.set_axis_off()
        if number < count:
            axes.imshow(grey if number else pixels, extent=(0, 1, 0, 1))
    return figure, all_axes[:count]


def _title(axes: "Axes", text: str) -> None:
    axes.set_title(text, fontsize=10, parse_math=False, wrap=True)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # characters that the font lacks are drawn as boxes
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
