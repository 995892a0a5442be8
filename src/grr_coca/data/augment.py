"""Random choices for a training sample, and changes of its image: streams, geometry, colour, mixtures, patch dropout.

Shapes: B images, S image size in pixels, N samples of a source, K kept patches.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from grr_coca.data.augmentation import Augmentation, Change
from grr_coca.data.order import SampleRef
from grr_coca.data.sources.base import BadSample, PairSource
from grr_coca.data.text import caption_id, clean_caption

# --- Streams of random numbers

MAX_REPLACEMENTS = 100
"""Number of samples to try in place of a bad one. If all of them are bad, hardly any sample of the source is good."""


class Stream(IntEnum):
    """Numbers of the random streams of a sample: the last part of the seed of each random choice.

    Each choice has a stream of its own, so no choice changes another. The numbers must stay the same, or runs could not
    be repeated.
    """

    REPLACEMENT = 1
    """The first sample to try in place of a bad one. The next ones have the numbers up to `MAX_REPLACEMENTS`."""
    CAPTION = REPLACEMENT + MAX_REPLACEMENTS
    """The caption, for an image with several."""
    PATCHES = 1000
    """The patches to keep."""
    MIX = 1001
    """The sibling of an image, and the mixture of the two."""


def sample_rng(seed: int, ref: SampleRef, stream: int | None = None) -> np.random.Generator:
    """Create the random generator for one visit of a sample.

    Args:
        seed: the seed of the run.
        ref: the visit.
        stream: a number of `Stream`; None for the change of the image.
    """
    return np.random.default_rng((seed, *ref) if stream is None else (seed, *ref, stream))


# --- Changes of images

_SWAP_CELLS = 4
"""Number of cells along each side of the grid whose cells are swapped."""


def mix_images(
    augmentation: Augmentation,
    image: UInt8[Tensor, "3 S S"],
    read_other: Callable[[], UInt8[Tensor, "3 S S"]],
    rng: np.random.Generator,
) -> UInt8[Tensor, "3 S S"]:
    """Mix another image into an image at random, with the probabilities `blend` and `swap`; else return the image. The
    other one is read only if it is mixed in."""
    draw = rng.uniform()
    if draw < augmentation.blend:
        return torch.lerp(image.float(), read_other().float(), rng.uniform(0, 0.5)).round_().byte()
    if draw < augmentation.blend + augmentation.swap:
        cell = torch.arange(image.shape[-1]) * _SWAP_CELLS // image.shape[-1]
        is_swapped = torch.from_numpy(rng.integers(0, 2, (_SWAP_CELLS, _SWAP_CELLS))).bool()
        return torch.where(is_swapped[cell][:, cell], read_other(), image)
    return image


def change_images(images: UInt8[Tensor, "B 3 S S"], changes: Sequence[Change]) -> Float[Tensor, "B 3 S S"]:
    """Apply a change to each image. The result has pixel values 0 … 1. Uncovered corners are white."""
    pixels = images.float().div_(255)
    for number, change in enumerate(changes):
        if change.side is not None:
            pixels[number] = _coarse(pixels[number], change.side)
    inverse = torch.from_numpy(np.stack([change.inverse for change in changes]))
    if not inverse.eq(torch.eye(2, 3)).all():
        # Padding has the value 0, so pixels are shifted until white is 0.
        pixels = grid_sample(pixels.sub_(1), _affine_grid(inverse, pixels.shape[-1]), align_corners=False).add_(1)
    colour = torch.from_numpy(np.stack([change.colour for change in changes]))
    offset = torch.from_numpy(np.stack([change.offset for change in changes]))[:, :, None]
    return torch.bmm(colour, pixels.flatten(2)).add_(offset).clamp_(0, 1).view_as(pixels)


def _coarse(image: Float[Tensor, "3 S S"], side: int) -> Float[Tensor, "3 S S"]:
    """An image scaled down to `side` pixels and up again, if it is larger than that."""
    if side >= image.shape[-1]:
        return image
    small = interpolate(image[None], size=(side, side), mode="area")
    return interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False)[0]


def _affine_grid(inverse: Float[Tensor, "B 2 3"], size: int) -> Float[Tensor, "B S S 2"]:
    """The grid of torch's `affine_grid` for square images, computed in a third of the time.

    It is the sum of a term for columns and a term for rows."""
    centres = (torch.arange(size) * 2 + 1).div(size).sub_(1)[:, None]  # of pixels, -1 … 1
    columns, rows, shift = (part[:, None] for part in inverse.unbind(-1))  # B 1 2
    return (centres * columns)[:, None] + (centres * rows + shift)[:, :, None]


# --- Siblings


class Siblings:
    """The siblings of each sample: other samples with the same first caption, which show the same thing.

    All captions are read once. 24 bytes per sample are kept.
    """

    def __init__(self, source: PairSource) -> None:
        captions = np.fromiter((_caption_id(source, index) for index in range(len(source))), np.int64, len(source))
        # Sorted by caption, samples with the same caption are neighbours.
        self._order: Int[np.ndarray, " N"] = np.argsort(captions, kind="stable")
        self._captions = captions
        self._sorted = captions[self._order]

    def draw(self, sample: int, rng: np.random.Generator) -> int | None:
        """A random sibling of a sample; None if it has none."""
        caption = self._captions[sample]
        if caption < 0:
            return None
        first, end = np.searchsorted(self._sorted, (caption, caption + 1))
        group = self._order[first:end]
        others = group[group != sample]
        return int(others[rng.integers(len(others))]) if len(others) else None


def _caption_id(source: PairSource, index: int) -> int:
    try:
        return caption_id(clean_caption(source.caption(index), source.name(index)))
    except BadSample:
        return -1  # the error is raised again when the pair is read


# --- Patch dropout (FLIP, arXiv 2212.00794): training leaves out a share of the patches of each image
#
# The choice is made when the data is read, and is part of the batch. So a batch that is run twice drops the same
# patches both times, with any number of workers and ranks, also in a resumed run.


def num_kept(num_patches: int, share: float) -> int:
    """The number of patches to keep if `share` of them is dropped, at least one."""
    return max(1, num_patches - round(share * num_patches))


def kept_patches(num_patches: int, share: float, rng: np.random.Generator) -> Int[Tensor, " K"]:
    """The patches to keep if `share` of them is dropped, drawn at random, in ascending order."""
    return torch.from_numpy(np.sort(rng.permutation(num_patches)[: num_kept(num_patches, share)]))
