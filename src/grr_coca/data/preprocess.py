"""From an image to the tensor that the model sees, with or without augmentation.

Shapes: B images, S image size in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import InterpolationMode

from grr_coca.errors import UserError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

CROP_SCALE = (1.1, 1.5)
"""Zoom factors of an image that is cropped."""

SWAP_CELLS = 4
"""Cells along a side of the grid in which images are swapped."""

IDENTITY, GREY = np.eye(3), np.tile(LUMA, (3, 1))
"""Colour matrices that keep all of the colour, and none."""


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, cut the centre square, scale to mean 0.5 and deviation 0.5.

    Stored in every checkpoint: a model is worth nothing with another one's preprocessing.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 S S"]:
        """The tensor of an RGB image of any size, about -1 … 1 by default."""
        return self.normalize(to_pixels(self.square(image)))

    def square(self, image: Image.Image) -> Image.Image:
        """The image as a square of `image_size` pixels.

        An extreme aspect ratio is cut before it is resized, so that 1 × 10,000 pixels do not become 64 × 640,000.
        """
        if image.size != (self.image_size, self.image_size):
            image = F.center_crop(image, [min(image.size)])
            image = F.resize(image, [self.image_size] * 2, InterpolationMode.BICUBIC, antialias=True)
        return image

    def normalize(self, pixels: Float[Tensor, "*B 3 S S"]) -> Float[Tensor, "*B 3 S S"]:
        """Pixel values 0 … 1, shifted by the mean and divided by the deviation of their channel."""
        return (pixels - _by_channel(self.mean)).div_(_by_channel(self.std))


def to_bytes(image: Image.Image) -> UInt8[Tensor, "3 S S"]:
    """Pixel values 0 … 255 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_pixels(image: Image.Image) -> Float[Tensor, "3 S S"]:
    """Pixel values 0 … 1 of an RGB image."""
    return to_bytes(image).float().div_(255)


@cache
def _by_channel(values: tuple[float, float, float]) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(values)[:, None, None]


class Change(NamedTuple):
    """A random change of one image: where each pixel of the changed image lies in the original (in coordinates of
    -1 … 1, as `affine_grid` takes them), what its colours are multiplied by, and what is added to them."""

    inverse: Float[np.ndarray, "2 3"]
    colour: Float[np.ndarray, "3 3"]
    offset: float


@dataclass(frozen=True)
class Augmentation:
    """Random geometry and colour, each a range; the defaults change nothing.

    `scale`: zoom factors; `crop`: share of images that are enlarged 1.1 to 1.5 times instead, so that their edges are
    cut off; `shift`: largest shift as a share of the side; `rotate`: largest angle in degrees; `jitter`: largest
    relative change of brightness, contrast and saturation; `grey`: share of images without colour.
    `blend` and `swap` are shares of images that are mixed, before all else, with another image of the same caption,
    where there is one: `blend` adds up to half of it, `swap` takes half of the cells of a 4 × 4 grid from it. The
    captions stay true, and no one hand's way of drawing is in all of the image.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    crop: float = 0.0
    shift: float = 0.0
    rotate: float = 0.0
    jitter: float = 0.0
    grey: float = 0.0
    blend: float = 0.0
    swap: float = 0.0

    def __post_init__(self) -> None:
        valid = {
            "scale": 0 < self.scale[0] <= self.scale[1],
            "crop": 0 <= self.crop <= 1,
            "shift": 0 <= self.shift <= 1,
            "rotate": 0 <= self.rotate <= 180,
            "jitter": 0 <= self.jitter <= 1,
            "grey": 0 <= self.grey <= 1,
            "blend": 0 <= self.blend <= 1,
            "swap": 0 <= self.swap <= 1 - self.blend,
        }
        for key in (key for key, is_valid in valid.items() if not is_valid):
            raise UserError(f"augmentation: {key} {getattr(self, key)} is out of range")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Float[Tensor, "3 S S"]:
        """Pixel values 0 … 1 of a square image, changed at random."""
        return change_images(to_bytes(image)[None], [self.draw(rng)])[0]

    def draw(self, rng: np.random.Generator) -> Change:
        """A random change of geometry and colour."""
        angle = math.radians(rng.uniform(-self.rotate, self.rotate))
        x, y = rng.uniform(-2 * self.shift, 2 * self.shift, 2)
        is_cropped = self.crop and rng.uniform() < self.crop
        scale = rng.uniform(*(CROP_SCALE if is_cropped else self.scale))
        # Turned clockwise about the centre, zoomed, then shifted.
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        inverse = np.array([[cos, sin, -cos * x - sin * y], [-sin, cos, sin * x - cos * y]], np.float32)
        brightness, contrast, saturation = rng.uniform(1 - self.jitter, 1 + self.jitter, 3)
        if rng.uniform() < self.grey:
            saturation = 0.0
        # Brightness, contrast about mid-grey, saturation and greyness are one affine map of colour space.
        colour = brightness * contrast * (saturation * IDENTITY + (1 - saturation) * GREY)
        return Change(inverse, colour.astype(np.float32), 0.5 * (1 - contrast))

    @property
    def mixes(self) -> bool:
        """Whether images of equal captions are mixed."""
        return self.blend + self.swap > 0

    def mix(
        self, image: UInt8[Tensor, "3 S S"], other: UInt8[Tensor, "3 S S"], rng: np.random.Generator
    ) -> UInt8[Tensor, "3 S S"]:
        """A square image, or a random mixture of it and another of its size."""
        draw = rng.uniform()
        if draw < self.blend:
            return torch.lerp(image.float(), other.float(), rng.uniform(0, 0.5)).round_().byte()
        if draw < self.blend + self.swap:
            cell = torch.arange(image.shape[-1]) * SWAP_CELLS // image.shape[-1]
            is_swapped = torch.from_numpy(rng.integers(0, 2, (SWAP_CELLS, SWAP_CELLS))).bool()
            return torch.where(is_swapped[cell][:, cell], other, image)
        return image


def change_images(images: UInt8[Tensor, "B 3 S S"], changes: Sequence[Change]) -> Float[Tensor, "B 3 S S"]:
    """Pixel values 0 … 1 of images, each with its change. Uncovered corners become white."""
    pixels = images.float().div_(255)
    inverse = torch.from_numpy(np.stack([change.inverse for change in changes]))
    if not inverse.eq(torch.eye(2, 3)).all():
        # White is 0, the padding's colour.
        pixels = grid_sample(pixels.sub_(1), _affine_grid(inverse, pixels.shape[-1]), align_corners=False).add_(1)
    colour = torch.from_numpy(np.stack([change.colour for change in changes]))
    # In fp64, which numpy's numbers are, the sum below would take twenty times as long.
    offset = torch.tensor([change.offset for change in changes], dtype=torch.float32)[:, None, None]
    return torch.bmm(colour, pixels.flatten(2)).add_(offset).clamp_(0, 1).view_as(pixels)


def _affine_grid(inverse: Float[Tensor, "B 2 3"], size: int) -> Float[Tensor, "B S S 2"]:
    """PyTorch's `affine_grid` for squares, in a third of its time: a sum of what each column and each row adds."""
    centres = (torch.arange(size) * 2 + 1).div(size).sub_(1)[:, None]  # of pixels, -1 … 1
    columns, rows, shift = (part[:, None] for part in inverse.unbind(-1))  # B 1 2
    return (centres * columns)[:, None] + (centres * rows + shift)[:, :, None]
