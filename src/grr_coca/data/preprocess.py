"""From an image to the tensor that the model sees.

Shapes: B images, S image size in pixels.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


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
            side = min(image.size)
            left, top = (round((length - side) / 2) for length in image.size)
            image = image.crop((left, top, left + side, top + side))
            image = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
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
