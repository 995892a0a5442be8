"""Random choices for training samples, and random changes of their images.

This module contains the streams of random numbers, changes of geometry and colour, the mixing of images, siblings, and
patch dropout.

Shapes: B images, S image size in pixels, N samples of a source, K kept patches.
"""

import io
import re
from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from grr_coca.data.augmentation import LUMA, Augmentation, ImageChange, Shape
from grr_coca.data.order import PERIOD, SampleRef, SampleSequence
from grr_coca.data.painting import paint_drawing
from grr_coca.data.sources.base import BadSample, PairSource, stable_id
from grr_coca.data.tokenizer import caption_id, clean_caption

# --- Streams of random numbers

MAX_REPLACEMENTS = 100
"""Maximum number of samples to try in place of a bad sample. If all of them are bad, almost no sample of the source is
valid."""


class Stream(IntEnum):
    """Numbers of a sample's random streams. The number of a stream is the last part of its seed.

    Each random choice has its own stream, so the choices are independent. The numbers must not change, because runs
    could then no longer be reproduced.
    """

    REPLACEMENT = 1
    """Choice of the first sample to try in place of a bad sample. The streams for the following samples have the
    numbers up to `MAX_REPLACEMENTS`.
    """
    CAPTION = REPLACEMENT + MAX_REPLACEMENTS
    """Choice of the caption, for an image with several captions."""
    PATCHES = 1000
    """Choice of the patches to keep."""
    MIX = 1001
    """Choice of an image's sibling, and of how the two images are mixed."""
    NEIGHBOUR = 1002
    """Choice of an image's neighbour, and of the side at which the neighbour is put."""
    SIBLING = 1003
    """Choice of the sibling that the next visit shows."""


def sample_rng(seed: int, ref: SampleRef, stream: int | None = None) -> np.random.Generator:
    """Create the random generator for one visit of a sample.

    Args:
        seed: Seed of the run.
        ref: Visit to the sample.
        stream: Number of the random stream. None means the stream of the image's change.
    """
    return np.random.default_rng((seed, *ref) if stream is None else (seed, *ref, stream))


# --- Changes of images

_MAX_REACH, _MARGIN = 0.2, 0.1
"""Maximum visible part of a neighbour, and the margin of the neighbour that is cropped, as fractions of the side."""
_SHADOW = 0.08
"""Offset and softness of a shadow in coordinates -1 … 1."""
_SWAP_CELLS = 4
"""Number of cells along each side of the grid whose cells are swapped."""


def mix_images(
    augmentation: Augmentation,
    image: UInt8[Tensor, "3 S S"],
    read_other: Callable[[], UInt8[Tensor, "3 S S"]],
    rng: np.random.Generator,
) -> UInt8[Tensor, "3 S S"]:
    """Mix another image into an image with the probabilities `blend` and `swap`.

    With probability `blend`, up to half of the other image is added. With probability `swap`, half of the cells of a
    grid come from the other image. Otherwise, the image is unchanged, and the other image is not read.
    """
    draw = rng.uniform()
    if draw < augmentation.blend:
        return torch.lerp(image.float(), read_other().float(), rng.uniform(0, 0.5)).round_().byte()
    if draw < augmentation.blend + augmentation.swap:
        cell = torch.arange(image.shape[-1]) * _SWAP_CELLS // image.shape[-1]
        is_swapped = torch.from_numpy(rng.integers(0, 2, (_SWAP_CELLS, _SWAP_CELLS))).bool()
        return torch.where(is_swapped[cell][:, cell], read_other(), image)
    return image


def add_neighbour(
    image: UInt8[Tensor, "3 S S"], read_other: Callable[[], UInt8[Tensor, "3 S S"]], rng: np.random.Generator
) -> UInt8[Tensor, "3 S S"]:
    """Put a part of another image at a random side of an image, as if the image were cropped from a sheet of drawings.

    Both images must be drawings on a white background.
    """
    reach = int(rng.integers(1, 1 + round(_MAX_REACH * image.shape[-1])))
    turns = int(rng.integers(4))
    turned = torch.rot90(image, turns, (1, 2)).clone()
    margin = round(_MARGIN * image.shape[-1])
    beside = torch.rot90(read_other(), turns, (1, 2))[:, :, margin : margin + reach]
    turned[:, :, -reach:] = torch.minimum(turned[:, :, -reach:], beside)
    return torch.rot90(turned, -turns, (1, 2)).contiguous()


def change_images(images: UInt8[Tensor, "B 3 S S"], changes: Sequence[ImageChange]) -> Float[Tensor, "B 3 S S"]:
    """Apply a change to each image with values 0 … 255, and return values 0 … 1. Uncovered areas are white."""
    pixels = images.float().div_(255)
    for number, change in enumerate(changes):
        if change.paint is not None:
            pixels[number] = paint_drawing(pixels[number], change.paint)
        if change.shape is not None:
            pixels[number] = _place_in_shape(pixels[number], change.shape)
        if change.side is not None or change.quality is not None:
            pixels[number] = _degrade(pixels[number], change.side or pixels.shape[-1], change.quality)
    inverse = torch.from_numpy(np.stack([change.inverse for change in changes]))
    if not inverse.eq(torch.eye(2, 3)).all():
        # Padding has the value 0, so pixels are shifted such that white is 0.
        pixels = grid_sample(pixels.sub_(1), _affine_grid(inverse, pixels.shape[-1]), align_corners=False).add_(1)
    colour = torch.from_numpy(np.stack([change.colour for change in changes]))
    offset = torch.from_numpy(np.stack([change.offset for change in changes]))[:, :, None]
    return torch.bmm(colour, pixels.flatten(2)).add_(offset).clamp_(0, 1).view_as(pixels)


def _degrade(image: Float[Tensor, "3 S S"], side: int, quality: int | None) -> Float[Tensor, "3 S S"]:
    """Scale an image down to `side` pixels and up again, with JPEG artefacts in between if a quality is given."""
    small = interpolate(image[None], size=(side, side), mode="area") if side < image.shape[-1] else image[None]
    if quality is not None:
        small = _compress_as_jpeg(small[0], quality)[None]
    return interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False)[0]


def _compress_as_jpeg(image: Float[Tensor, "3 S S"], quality: int) -> Float[Tensor, "3 S S"]:
    file = io.BytesIO()
    pixels = image.mul(255).round_().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float().div_(255)


def _place_in_shape(image: Float[Tensor, "3 S S"], shape: Shape) -> Float[Tensor, "3 S S"]:
    """Place a drawing with a white background in a shape.

    The darker a pixel of the drawing is, the more of the shape's fill is covered by ink. Without an ink colour, the
    drawing's colours are multiplied by the fill.
    """
    side = image.shape[-1]
    icon = max(1, round(shape.side * shape.icon * side))
    small = interpolate(image[None], size=(icon, icon), mode="bilinear", antialias=True, align_corners=False)[0]
    drawing = torch.ones_like(image)
    start = (side - icon) // 2
    drawing[:, start : start + icon, start : start + icon] = small
    fill, ground = (torch.from_numpy(colour).float()[:, None, None] for colour in (shape.fill, shape.ground))
    if shape.ink is None:
        inside = fill * drawing
    else:
        ink = torch.from_numpy(shape.ink).float()[:, None, None]
        grey = torch.tensordot(torch.tensor(LUMA), drawing, dims=1)
        inside = ink + (fill - ink) * grey
    centres = (torch.arange(side) * 2 + 1).div(side).sub_(1)
    outside = ground * (1 - shape.shadow * (0.5 - _distance(shape, centres, centres - _SHADOW) / _SHADOW).clamp_(0, 1))
    return torch.lerp(outside, inside, (0.5 - _distance(shape, centres, centres) * (side / 2)).clamp_(0, 1))


def _distance(shape: Shape, across: Float[Tensor, " S"], down: Float[Tensor, " S"]) -> Float[Tensor, "S S"]:
    """Return the distance of each point from a shape, in coordinates -1 … 1. It is negative inside the shape.

    The formula for a rounded box is from https://iquilezles.org/articles/distfunctions2d.
    """
    radius = shape.roundness * shape.side
    x, y = (places.abs() - (shape.side - radius) for places in (across[None], down[:, None]))
    corner = torch.hypot(x.clamp(min=0), y.clamp(min=0))
    return corner + torch.maximum(x, y).clamp(max=0) - radius


def _affine_grid(inverse: Float[Tensor, "B 2 3"], size: int) -> Float[Tensor, "B S S 2"]:
    """Return the grid that PyTorch's `affine_grid` returns for square images, in a third of the time.

    The grid is the sum of a term for columns and a term for rows.
    """
    centres = (torch.arange(size) * 2 + 1).div(size).sub_(1)[:, None]  # coordinates of the pixels, -1 … 1
    columns, rows, shift = (part[:, None] for part in inverse.unbind(-1))  # B 1 2
    return (centres * columns)[:, None] + (centres * rows + shift)[:, :, None]


# --- Siblings


class Siblings:
    """Siblings of each sample: other samples with the same first caption, which show the same concept.

    If `apart` is true, siblings must belong to different sets. The set of a file is the part of its name before the
    first `_`, such as `lucide` in `lucide_trash.svg`. All captions are read once. Siblings take 24 bytes of memory per
    sample, or 32 bytes if `apart` is true.
    """

    def __init__(self, source: PairSource, *, apart: bool = False) -> None:
        captions = np.fromiter((_caption_id(source, index) for index in range(len(source))), np.int64, len(source))
        sets = (stable_id(_set_of(source.name(index))) for index in range(len(source)))
        self._sets = np.fromiter(sets, np.int64, len(source)) if apart else None
        # When samples are sorted by caption, samples with the same caption are adjacent.
        self._order: Int[np.ndarray, " N"] = np.argsort(captions, kind="stable")
        self._captions = captions
        self._sorted = captions[self._order]

    def draw(self, sample: int, rng: np.random.Generator) -> int | None:
        """Return a random sibling of a sample, or None if the sample has no siblings."""
        caption = self._captions[sample]
        if caption < 0:
            return None
        first, end = np.searchsorted(self._sorted, (caption, caption + 1))
        group = self._order[first:end]
        others = group[group != sample if self._sets is None else self._sets[group] != self._sets[sample]]
        return int(others[rng.integers(len(others))]) if len(others) else None


class SiblingVisits:
    """Sequence of visits, of which an evenly spaced fraction shows siblings of the samples visited just before.

    If the previous sample has no sibling, the visit is unchanged. All visits outside the fraction are also unchanged.
    The visit at any position can be computed directly.

    Args:
        visits: Visits without siblings.
        siblings: Siblings of the same samples.
        share: Fraction of visits that show siblings, at most one half.
        seed: Seed of the run.
    """

    def __init__(self, visits: SampleSequence, siblings: Siblings, share: float, seed: int) -> None:
        self._visits, self._siblings, self._seed = visits, siblings, seed
        self._in_period = round(share * PERIOD)

    def at(self, position: int) -> SampleRef:
        """Return the visit at a position in the sequence."""
        shows_sibling = (position + 1) * self._in_period // PERIOD > position * self._in_period // PERIOD
        if shows_sibling and position:
            before = self._visits.at(position - 1)
            sibling = self._siblings.draw(before.sample, sample_rng(self._seed, before, Stream.SIBLING))
            if sibling is not None:
                return SampleRef(before.epoch, sibling)
        return self._visits.at(position)


def _set_of(name: str) -> str:
    return re.split(r"[/\\: ]", name)[-1].partition("_")[0]


def _caption_id(source: PairSource, index: int) -> int:
    try:
        return caption_id(clean_caption(source.caption(index), source.name(index)))
    except BadSample:
        return -1  # the error is raised again when the pair is read


# --- Patch dropout (FLIP, arXiv 2212.00794): training drops a fraction of the patches of each image
#
# The patches are chosen when data are read, and the choice is part of the batch. If a batch is run twice, the same
# patches are therefore dropped both times, with any number of workers and ranks, and also in a resumed run.


def num_kept(num_patches: int, share: float) -> int:
    """Return the number of patches to keep if the fraction `share` is dropped. At least one patch is kept."""
    return max(1, num_patches - round(share * num_patches))


def kept_patches(num_patches: int, share: float, rng: np.random.Generator) -> Int[Tensor, " K"]:
    """Return the indices of random patches to keep, in ascending order, if the fraction `share` is dropped."""
    return torch.from_numpy(np.sort(rng.permutation(num_patches)[: num_kept(num_patches, share)]))
