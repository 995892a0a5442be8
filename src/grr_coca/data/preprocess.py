"""From an image to the tensor that the model sees, with or without augmentation.

Shapes: S image size in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, cut the centre square, scale to mean 0.5 and deviation 0.5.

    Stored in every checkpoint: a model is worth nothing with another one's preprocessing.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 S S"]:
        """The tensor of an RGB image of any size."""
        return self.to_tensor(self.square(image))

    def square(self, image: Image.Image) -> Image.Image:
        """The image as a square of `image_size` pixels.

        An extreme aspect ratio is cut before it is resized, so that 1 × 10,000 pixels do not become 64 × 640,000.
        """
        if image.size != (self.image_size, self.image_size):
            image = F.center_crop(image, [min(image.size)])
            image = F.resize(image, [self.image_size] * 2, InterpolationMode.BICUBIC, antialias=True)
        return image

    def to_tensor(self, image: Image.Image) -> Float[Tensor, "3 S S"]:
        """Normalized values, about -1 … 1 by default."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous()


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

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The image, changed at random; uncovered corners become white."""
        side = image.size[0]
        angle = float(rng.uniform(-self.rotate, self.rotate))
        shift = [round(float(rng.uniform(-self.shift, self.shift)) * side) for _ in range(2)]
        scale = float(rng.uniform(*self.scale))
        if angle or any(shift) or scale != 1.0:
            image = F.affine(image, angle, shift, scale, [0.0, 0.0], InterpolationMode.BILINEAR, fill=[255.0] * 3)
        brightness, contrast, saturation = (float(f) for f in rng.uniform(1 - self.jitter, 1 + self.jitter, 3))
        if self.jitter:
            image = F.adjust_brightness(image, brightness)
            image = F.adjust_contrast(image, contrast)
            image = F.adjust_saturation(image, saturation)
        return F.rgb_to_grayscale(image, 3) if rng.uniform() < self.grey else image
