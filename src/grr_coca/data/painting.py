"""Paint drawings that have a white background: in many colours, and with gloss, an outline and a shadow.

Shapes: S image size in pixels.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from grr_coca.data.augmentation import LUMA, Paint

_WHITE, _INK = 0.9, 0.4
"""Minimum value of all channels of a white pixel, and minimum darkness of an ink pixel as a fraction of the maximum
darkness."""
_COLOURED = 0.15
"""Minimum difference between the channels of a pixel that makes a drawing count as coloured, not grey."""
_SOFT = 1 / 32
"""Radius of the double blur of the masks for bevels, outlines and shadows, as a fraction of the side."""


def paint_drawing(image: Float[Tensor, "3 S S"], paint: Paint) -> Float[Tensor, "3 S S"]:
    """Return a painted drawing on a white background. All values are 0 … 1."""
    colours, mask = _colour_drawing(image, paint)
    shade, factor = _light_effects(paint, mask)
    colours = torch.lerp(colours, colours.mul(factor).add_(shade).clamp_(0, 1), mask)
    if paint.outline is not None:
        around = _blur(mask).mul_(4).clamp_(0, 1) * (1 - mask)
        colours = torch.lerp(colours, torch.from_numpy(paint.outline)[:, None, None], around)
        mask = torch.maximum(mask, around)
    if paint.shadow:
        down, across = (round(share * len(mask)) for share in paint.fall)
        colours = colours * (1 - paint.shadow * _blur(pad(mask, (across, -across, down, -down))) * (1 - mask))
    return colours


def _colour_drawing(image: Float[Tensor, "3 S S"], paint: Paint) -> tuple[Float[Tensor, "3 S S"], Float[Tensor, "S S"]]:
    """Return the drawing in the colours of the paint, and the coverage of each pixel by the drawing, 0 … 1.

    The colours are unchanged if the paint has no palette, or if the drawing is coloured or barely differs from white.
    """
    dark = 1 - torch.tensordot(torch.tensor(LUMA), image, 1)
    lowest = image.amin(0)
    whites = _label_areas(lowest > _WHITE)
    is_inside = torch.ones(int(whites.max()) + 1, dtype=torch.bool)  # the index is the number of the area
    is_inside[torch.cat([whites[0], whites[-1], whites[:, 0], whites[:, -1]])] = False
    is_inside[0] = False
    darkest, chroma = dark.max(), (image.amax(0) - lowest).max()
    if paint.palette is None or chroma > _COLOURED or darkest < 1 - _WHITE:
        return image, torch.where(whites > 0, is_inside[whites].float(), (1 - lowest).mul_(4).clamp_(0, 1))
    # Outside, the ink covers white. In the areas that the ink encloses, it covers their colours.
    numbers = torch.from_numpy(np.resize(paint.numbers, len(is_inside)))
    areas = _grow(whites * (is_inside & (numbers < paint.fills))[whites])
    below = torch.where(areas > 0, _apply_palette(areas, numbers, paint.palette), torch.ones(()))
    cover = dark / darkest
    parts = _grow(_label_areas(cover > _INK))
    numbers = torch.from_numpy(np.resize(paint.numbers[::-1], int(parts.max()) + 1))
    ink = _apply_palette(parts, numbers, paint.palette[: paint.num_inks])
    return torch.lerp(below, ink, cover), torch.maximum(cover, (areas > 0).float())


def _apply_palette(
    areas: Int[Tensor, "S S"], numbers: Float[Tensor, " A"], palette: Float[np.ndarray, "C 3"]
) -> Float[Tensor, "3 S S"]:
    """Return an image in which each area has the palette colour that the number of the area, 0 … 1, selects."""
    of_area = torch.from_numpy(palette)[(numbers * len(palette)).long()]
    return of_area.T.contiguous()[:, areas]


def _light_effects(paint: Paint, mask: Float[Tensor, "S S"]) -> tuple[Float[Tensor, "S S"], Float[Tensor, "S S"]]:
    """Return the effects of the light: the terms to add to the colours, and the factors to apply before adding."""
    places = (torch.arange(len(mask)) * 2 + 1).div(len(mask)).sub_(1)
    across, down = places[None], places[:, None]
    to_right, to_bottom = paint.light
    along = across * to_right + down * to_bottom
    shade = along.clamp(min=0) * (0.3 * paint.gradient)
    if paint.bevel:
        slope_down, slope_across = torch.gradient(_blur(mask))
        shade += (slope_across * to_right + slope_down * to_bottom) * paint.bevel
    if paint.highlight:
        x, y, radius = paint.glance
        shade += torch.exp(((across - x) ** 2 + (down - y) ** 2) / -(radius**2)) * paint.highlight
    return shade, 1 + along * paint.gradient


def _label_areas(is_in: Bool[Tensor, "S S"]) -> Int[Tensor, "S S"]:
    """Label each connected area with a number from 1 on, and all other pixels with 0.

    Each row is split into runs, and runs that touch each other are joined
    (https://en.wikipedia.org/wiki/Connected-component_labeling).
    """
    inside = is_in.numpy()
    runs = np.cumsum(_run_starts(inside)).reshape(inside.shape) * inside
    meet = _run_starts(inside[1:] & inside[:-1])
    first = list(range(int(runs.max()) + 1))  # the first run with which each run is joined
    for upper, lower in zip(runs[:-1][meet].tolist(), runs[1:][meet].tolist(), strict=True):
        while first[upper] != upper:
            upper = first[upper]
        while first[lower] != lower:
            lower = first[lower]
        first[max(upper, lower)] = min(upper, lower)
    for run, other in enumerate(first):
        first[run] = first[other]
    return torch.from_numpy(np.array(first)[runs])


def _run_starts(is_in: Bool[np.ndarray, "R S"]) -> Bool[np.ndarray, "R S"]:
    starts = is_in.copy()
    starts[:, 1:] &= ~is_in[:, :-1]
    return starts


def _grow(areas: Int[Tensor, "S S"]) -> Int[Tensor, "S S"]:
    """Grow areas by the pixels around them, which the edges of the areas partially cover."""
    return max_pool2d(areas[None].float(), 3, 1, 1)[0].long()


def _blur(mask: Float[Tensor, "S S"]) -> Float[Tensor, "S S"]:
    reach = round(_SOFT * len(mask))
    once = avg_pool2d(mask[None], 2 * reach + 1, 1, reach)
    return avg_pool2d(once, 2 * reach + 1, 1, reach)[0]
