"""Augmentation: the allowed random changes of training images, and the random change that is drawn for one image.

`grr_coca.data.changes` applies the drawn change. This module does not import torch, so a recipe can be read without it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from grr_coca.errors import UserError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

CROP_SCALE = (1.1, 1.5)
"""Range of zoom factors of a cropped image."""

IDENTITY, GREY = np.eye(3), np.tile(LUMA, (3, 1))
"""Colour matrices: one keeps all colour, the other removes it."""


class Change(NamedTuple):
    """A random change of one image.

    `inverse`: for each pixel of the changed image, its place in the original, in coordinates -1 … 1 as in
    `affine_grid`. `colour`: the matrix that multiplies its colour. `offset`: added to the colour after that.
    """

    inverse: Float[np.ndarray, "2 3"]
    colour: Float[np.ndarray, "3 3"]
    offset: float


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of geometry and colour. The defaults change nothing.

    - `scale`: range of zoom factors
    - `crop`: share of images that are enlarged 1.1 to 1.5 times instead, so that their edges are cut off
    - `shift`: largest shift, as a share of the side
    - `rotate`: largest angle, in degrees
    - `jitter`: largest relative change of brightness, contrast and saturation
    - `grey`: share of images that lose their colour
    - `blend`: share of images to which up to half of another image of the same caption is added
    - `swap`: share of images in which half of the cells of a 4 × 4 grid come from another image of the same caption

    `blend` and `swap` come before all other changes. They need another image of the same caption, so the caption stays
    true, while the image has more than one style.
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

    def draw(self, rng: np.random.Generator) -> Change:
        """A random change of geometry and colour."""
        angle = math.radians(rng.uniform(-self.rotate, self.rotate))
        x, y = rng.uniform(-2 * self.shift, 2 * self.shift, 2)
        is_cropped = self.crop and rng.uniform() < self.crop
        scale = rng.uniform(*(CROP_SCALE if is_cropped else self.scale))
        # Rotated clockwise about the centre, zoomed, then shifted.
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        inverse = np.array([[cos, sin, -cos * x - sin * y], [-sin, cos, sin * x - cos * y]], np.float32)
        brightness, contrast, saturation = rng.uniform(1 - self.jitter, 1 + self.jitter, 3)
        if rng.uniform() < self.grey:
            saturation = 0.0
        # Brightness, contrast about mid-grey, and saturation together are one affine map of colours.
        colour = brightness * contrast * (saturation * IDENTITY + (1 - saturation) * GREY)
        return Change(inverse, colour.astype(np.float32), 0.5 * (1 - contrast))

    @property
    def mixes(self) -> bool:
        """True if images of the same caption are mixed."""
        return self.blend + self.swap > 0
