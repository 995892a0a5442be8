"""From an image to the tensor that the model sees, with or without augmentation.

Shapes: S image size in pixels.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from grr_coca.errors import UserError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

IDENTITY, GREY = torch.eye(3), torch.tensor(LUMA).expand(3, 3)
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

    def normalize(self, pixels: Float[Tensor, "3 S S"]) -> Float[Tensor, "3 S S"]:
        """Pixel values 0 … 1, shifted by the mean and divided by the deviation of their channel."""
        return (pixels - _by_channel(self.mean)).div_(_by_channel(self.std))


def to_pixels(image: Image.Image) -> Float[Tensor, "3 S S"]:
    """Pixel values 0 … 1 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)


@cache
def _by_channel(values: tuple[float, float, float]) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(values)[:, None, None]


@dataclass(frozen=True)
class Augmentation:
    """Random geometry and colour, each a range; the defaults change nothing.

    `scale`: zoom factors; `shift`: largest shift as a share of the side; `rotate`: largest angle in degrees;
    `jitter`: largest relative change of brightness, contrast and saturation; `grey`: share of images without colour.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    rotate: float = 0.0
    jitter: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        valid = {
            "scale": 0 < self.scale[0] <= self.scale[1],
            "shift": 0 <= self.shift <= 1,
            "rotate": 0 <= self.rotate <= 180,
            "jitter": 0 <= self.jitter <= 1,
            "grey": 0 <= self.grey <= 1,
        }
        for key in (key for key, is_valid in valid.items() if not is_valid):
            raise UserError(f"augmentation: {key} {getattr(self, key)} is out of range")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Float[Tensor, "3 S S"]:
        """Pixel values 0 … 1 of a square image, changed at random."""
        return self._colour(to_pixels(self._geometry(image, rng)), rng)

    def _geometry(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        # Uncovered corners become white.
        side = image.size[0]
        angle = float(rng.uniform(-self.rotate, self.rotate))
        shift = [round(float(rng.uniform(-self.shift, self.shift)) * side) for _ in range(2)]
        scale = float(rng.uniform(*self.scale))
        if angle or any(shift) or scale != 1.0:
            matrix = _inverse_affine(side, angle, shift, scale)
            image = image.transform(
                image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)
            )
        return image

    def _colour(self, pixels: Float[Tensor, "3 S S"], rng: np.random.Generator) -> Float[Tensor, "3 S S"]:
        # Brightness, contrast, saturation and greyness are one affine map of colour space: one small product.
        brightness, contrast, saturation = rng.uniform(1 - self.jitter, 1 + self.jitter, 3)
        if rng.uniform() < self.grey:
            saturation = 0.0
        elif not self.jitter:
            return pixels
        matrix = brightness * contrast * (saturation * IDENTITY + (1 - saturation) * GREY)
        # Contrast turns about mid-grey.
        return (matrix @ pixels.flatten(1)).add_(0.5 * (1 - contrast)).clamp_(0, 1).view_as(pixels)


def _inverse_affine(side: int, angle: float, shift: list[int], scale: float) -> tuple[float, ...]:
    """Where each pixel of the changed image lies in the original, as Pillow's six numbers.

    The image is turned clockwise by `angle` degrees about its centre, zoomed, then shifted.
    """
    cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    centre = side * 0.5
    x, y = (-centre - distance for distance in shift)
    return cos, sin, cos * x + sin * y + centre, -sin, cos, -sin * x + cos * y + centre
