"""Draw heat maps over images, as PNG. Only this module needs matplotlib, which is imported when it is first used."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from grr_coca.data.preprocess import Preprocess
from grr_coca.infer.explain.caption import WordMap

_SIDE = 224
"""Size, in pixels, of the image in each panel."""
_MAX_COLUMNS = 6
_INCHES = 1.9
_OPACITY = 0.6


def caption_picture(image: Image.Image, maps: Sequence[WordMap], dpi: int = 110) -> bytes:
    """Draw a model's input image and one heat map per word, from white to red (the maximum), and return a PNG."""
    from matplotlib.figure import Figure

    titles = ["image", *(word for word, _ in maps)]
    columns = min(len(titles), _MAX_COLUMNS)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(columns * _INCHES, rows * (_INCHES + 0.3)), dpi=dpi, layout="constrained")
    pixels = np.asarray(Preprocess(_SIDE).square(image))
    grey = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for number, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        axes.set_title(title, fontsize=10, parse_math=False, wrap=True)
        axes.imshow(grey if number else pixels, extent=(0, 1, 0, 1))
    # One square per patch, without blurring, because the map has no information about pixels within a patch.
    squares = {"cmap": "Reds", "alpha": _OPACITY, "extent": (0, 1, 0, 1), "interpolation": "nearest"}
    for axes, (_, heat) in zip(panels[1:], maps, strict=False):
        axes.imshow(heat.numpy(), vmin=0.0, vmax=max(float(heat.max()), 1e-12), **squares)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # characters that the font lacks are drawn as boxes
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
