"""Augmentation: which random changes of training images are allowed, and what is drawn for one image.

`grr_coca.data.changes` applies what was drawn. This file needs no torch, so that a recipe can be read without it.
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
"""Zoom factors of an image that is cropped."""

IDENTITY, GREY = np.eye(3), np.tile(LUMA, (3, 1))
"""Colour matrices that keep all of the colour, and none."""


class Change(NamedTuple):
    """A random change of one image: where each pixel of the changed image lies in the original (in coordinates of
    -1 … 1, as `affine_grid` takes them), what its colours are multiplied by, and what is added to them."""

    inverse: Float[np.ndarray, "2 3"]
    colour: Float[np.ndarray, "3 3"]
    offset: float


@dataclass(frozen=True, kw_only=True)
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
        """True if images of equal captions are mixed."""
        return self.blend + self.swap > 0
