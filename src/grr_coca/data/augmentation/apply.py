"""Applies random changes to training images: geometry, colour, and mixtures of two images.

Shapes: B images, S image size in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from grr_coca.data.augmentation.random_change import Augmentation, Change

SWAP_CELLS = 4
"""Number of cells along each side of the grid whose cells are swapped."""


def mix_images(
    augmentation: Augmentation,
    image: UInt8[Tensor, "3 S S"],
    other: UInt8[Tensor, "3 S S"],
    rng: np.random.Generator,
) -> UInt8[Tensor, "3 S S"]:
    """With the augmentation's probability, a random mixture of two images of the same size; else the first image."""
    draw = rng.uniform()
    if draw < augmentation.blend:
        return torch.lerp(image.float(), other.float(), rng.uniform(0, 0.5)).round_().byte()
    if draw < augmentation.blend + augmentation.swap:
        cell = torch.arange(image.shape[-1]) * SWAP_CELLS // image.shape[-1]
        is_swapped = torch.from_numpy(rng.integers(0, 2, (SWAP_CELLS, SWAP_CELLS))).bool()
        return torch.where(is_swapped[cell][:, cell], other, image)
    return image


def change_images(images: UInt8[Tensor, "B 3 S S"], changes: Sequence[Change]) -> Float[Tensor, "B 3 S S"]:
    """Apply a change to each image. The result has pixel values 0 … 1. Uncovered corners become white."""
    pixels = images.float().div_(255)
    for number, change in enumerate(changes):
        if change.side is not None:
            pixels[number] = _coarse(pixels[number], change.side)
    inverse = torch.from_numpy(np.stack([change.inverse for change in changes]))
    if not inverse.eq(torch.eye(2, 3)).all():
        # Padding has the value 0, so pixels are shifted to make white 0.
        pixels = grid_sample(pixels.sub_(1), _affine_grid(inverse, pixels.shape[-1]), align_corners=False).add_(1)
    colour = torch.from_numpy(np.stack([change.colour for change in changes]))
    offset = torch.from_numpy(np.stack([change.offset for change in changes]))[:, :, None]
    return torch.bmm(colour, pixels.flatten(2)).add_(offset).clamp_(0, 1).view_as(pixels)


def _coarse(image: Float[Tensor, "3 S S"], side: int) -> Float[Tensor, "3 S S"]:
    """An image scaled down to `side` pixels, if it is larger, and up again."""
    if side >= image.shape[-1]:
        return image
    small = interpolate(image[None], size=(side, side), mode="area")
    return interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False)[0]


def _affine_grid(inverse: Float[Tensor, "B 2 3"], size: int) -> Float[Tensor, "B S S 2"]:
    """PyTorch's `affine_grid` for squares, in a third of its time: the sum of a term for the column and one for the
    row."""
    centres = (torch.arange(size) * 2 + 1).div(size).sub_(1)[:, None]  # of pixels, -1 … 1
    columns, rows, shift = (part[:, None] for part in inverse.unbind(-1))  # B 1 2
    return (centres * columns)[:, None] + (centres * rows + shift)[:, :, None]
