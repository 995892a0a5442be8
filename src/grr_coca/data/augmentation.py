"""Augmentation of training images: which random changes are allowed, and how a change is sampled.

`grr_coca.data.random_changes` applies a change, and `grr_coca.data.painting` applies its paint.
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Float

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""

_CROP_SCALE = (1.1, 1.5)
"""Range of zoom factors of a cropped image."""

_IDENTITY, _GREY = np.eye(3), np.tile(LUMA, (3, 1))
"""Colour matrices: the first keeps all colours, and the second converts them to grey."""


_MIN_SIDE, _MAX_SIDE = 16, 48
"""Range of the side, in pixels, to which coarse images are scaled down."""

_MIN_CONTRAST = 0.35
"""Minimum difference between ink and background, in grey values."""

_QUALITY = (30, 80)
"""Range of the JPEG quality. The upper limit is excluded."""

_SHAPE_SIDE, _ICON_SIDE = (0.84, 1.0), (0.5, 0.7)
"""Ranges of the side of a shape, as a fraction of the image's side, and of the side of the icon, as a fraction of the
shape's side."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape around a drawing, such as a button.

    Attributes:
        side: Side of the shape, as a fraction of the image's side.
        icon: Side of the drawing in the shape, as a fraction of the shape's side.
        roundness: Roundness of the corners: 0 yields a square, and 1 yields a disc.
        fill, ground: Colours of the shape and of the area around it.
        ink: Colour of the drawing. None keeps the colours of the drawing.
        shadow: Darkness of the shadow below the shape, 0 … 1.
    """

    side: float
    icon: float
    roundness: float
    fill: Float[np.ndarray, "3"]
    ground: Float[np.ndarray, "3"]
    ink: Float[np.ndarray, "3"] | None
    shadow: float


@dataclass(frozen=True, kw_only=True)
class Paint:
    """Parameters for painting a drawing.

    Attributes:
        palette: Colours, 0 … 1. None keeps the colours of the drawing. Drawings that are not grey always keep their
            colours.
        num_inks: Number of palette colours for the ink.
        fills: Fraction of the inner white areas that also get a colour.
        numbers: Values in 0 … 1 that select the colour of each part of the ink and of each area.
        light: Direction of the light, as a vector to the right and down.
        gradient, bevel, highlight, shadow: Strengths of the effects; 0 turns an effect off.
        glance: Position x, y and radius of the highlight, in coordinates -1 … 1.
        fall: Offset of the shadow, down and to the right, as fractions of the side.
        outline: Colour of a line around the drawing. If None, no line is drawn.
    """

    palette: Float[np.ndarray, "C 3"] | None
    num_inks: int
    fills: float
    numbers: Float[np.ndarray, " N"]
    light: tuple[float, float]
    gradient: float
    bevel: float
    highlight: float
    glance: tuple[float, float, float]
    shadow: float
    fall: tuple[float, float]
    outline: Float[np.ndarray, "3"] | None


@dataclass(frozen=True, kw_only=True)
class ImageChange:
    """A random change of one image.

    Before the colours of the image change, the image is, in this order, painted with `paint`, placed in `shape`, scaled
    down to `side` pixels, and stored in that size as a JPEG of `quality`. A step is skipped if its attribute is None.

    Attributes:
        inverse: Map from a pixel of the changed image to its position in the original, in coordinates -1 … 1
            (`affine_grid`).
        colour: Matrix by which colours are multiplied.
        offset: Offset that is then added to colours.
    """

    inverse: Float[np.ndarray, "2 3"]
    colour: Float[np.ndarray, "3 3"]
    offset: Float[np.ndarray, "3"]
    side: int | None = None
    quality: int | None = None
    shape: Shape | None = None
    paint: Paint | None = None


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The allowed random changes of training images. The defaults change nothing.

    Attributes:
        scale: Range of zoom factors.
        crop: Fraction of images that are enlarged 1.1 to 1.5 times, which crops their edges, instead of by `scale`.
        shift: Largest shift, as a fraction of the side.
        rotate: Largest angle, in degrees.
        jitter: Largest relative change of brightness, contrast and saturation.
        grey: Fraction of images converted to grey.
        blend: Fraction of images to which up to half of another image of the same caption is added.
        swap: Fraction of images in which half of the cells of a 4 × 4 grid come from another image of the same caption.
        recolour: Fraction of images drawn in two random colours; light on dark and dark on light are equally frequent.
        tint: Fraction of images whose white becomes a random light colour.
        coarse: Fraction of images scaled down to a random side of 16 to 48 pixels, and up again.
        shape: Fraction of images that are placed in a disc, a square or a rounded square of random colours, like the
            icon of a button.
        paint: Fraction of images that are painted. Their parts and inner white areas get random colours, and the images
            can get a gradient, a bevel, a highlight, an outline and a shadow.
        jpeg: Fraction of images with JPEG artefacts of random quality.
        neighbour: Fraction of images with a part of another image at one side.

    The last seven changes are for models that are trained on drawings with a white background, because users' drawings
    have any background and size, and occur in screenshots. `blend`, `swap` and `neighbour` are applied before all other
    changes. `blend` and `swap` mix two images with the same caption, so the caption of the mixed image is correct.

    Raises:
        UserError: If a value is out of range, or the sum of `blend` and `swap`, or of `recolour`, `tint`, `shape` and
            `paint`, is above 1.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    crop: float = 0.0
    shift: float = 0.0
    rotate: float = 0.0
    jitter: float = 0.0
    grey: float = 0.0
    blend: float = 0.0
    swap: float = 0.0
    recolour: float = 0.0
    tint: float = 0.0
    coarse: float = 0.0
    shape: float = 0.0
    paint: float = 0.0
    jpeg: float = 0.0
    neighbour: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise UserError(f"scale must be two numbers above 0, the smaller one first, got {self.scale}")
        for key in (field.name for field in fields(self) if field.name != "scale"):
            value, limit = getattr(self, key), 180 if key == "rotate" else 1
            if not 0 <= value <= limit:
                raise UserError(f"{key} must be from 0 to {limit}, got {value}")
        for keys in (("blend", "swap"), ("recolour", "tint", "shape", "paint")):
            share = sum(getattr(self, key) for key in keys)
            if share > 1:
                named = " and ".join(key for key in keys if getattr(self, key))
                raise UserError(f"the sum of {named} must be at most 1, got {share:g}")

    def draw(self, rng: np.random.Generator) -> ImageChange:
        """Sample a random change. It does not include `blend`, `swap` and `neighbour`, which need other images."""
        angle = math.radians(rng.uniform(-self.rotate, self.rotate))
        x, y = rng.uniform(-2 * self.shift, 2 * self.shift, 2)
        is_cropped = self.crop and rng.uniform() < self.crop
        scale = rng.uniform(*(_CROP_SCALE if is_cropped else self.scale))
        # Rotate clockwise about the centre, zoom, then shift.
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        inverse = np.array([[cos, sin, -cos * x - sin * y], [-sin, cos, sin * x - cos * y]], np.float32)
        brightness, contrast, saturation = rng.uniform(1 - self.jitter, 1 + self.jitter, 3)
        if rng.uniform() < self.grey:
            saturation = 0.0
        # Brightness, contrast about mid-grey, and saturation form one affine map of colours.
        colour = brightness * contrast * (saturation * _IDENTITY + (1 - saturation) * _GREY)
        offset = np.full(3, 0.5 * (1 - contrast))
        shape = paint = None
        if self.recolour or self.tint or self.shape or self.paint:
            draw = rng.uniform()
            if draw < self.recolour:
                ink, ground = _random_ink_and_ground(rng)
                colour, offset = np.outer(ground - ink, LUMA), ink
            elif draw < self.recolour + self.tint:
                light = rng.uniform(0.6, 1, 3)
                colour, offset = light[:, None] * colour, light * offset
            elif draw < self.recolour + self.tint + self.shape:
                shape = _random_shape(rng)
            elif draw < self.recolour + self.tint + self.shape + self.paint:
                paint = _random_paint(rng)
        side = int(rng.integers(_MIN_SIDE, _MAX_SIDE + 1)) if self.coarse and rng.uniform() < self.coarse else None
        quality = int(rng.integers(*_QUALITY)) if self.jpeg and rng.uniform() < self.jpeg else None
        return ImageChange(
            inverse=inverse,
            colour=colour.astype(np.float32),
            offset=offset.astype(np.float32),
            side=side,
            quality=quality,
            shape=shape,
            paint=paint,
        )

    @property
    def mixes(self) -> bool:
        """Whether some images are mixed with another image of the same caption, by `blend` or `swap`."""
        return self.blend + self.swap > 0


def _random_shape(rng: np.random.Generator) -> Shape:
    """Return a random shape, usually a disc or rounded square in one colour on white.

    Some drawings keep their own colours.
    """
    roundness = float(rng.choice([1.0, rng.uniform(0.1, 0.7), 0.0], p=[0.45, 0.4, 0.15]))
    ground = np.ones(3) if rng.uniform() < 0.6 else rng.uniform(0, 1, 3)
    if rng.uniform() < 0.25:
        ink, fill = None, rng.uniform(0.6, 1, 3)  # white becomes the fill
    else:
        ink, fill = _random_ink_and_ground(rng)
        ink = np.ones(3) if fill @ np.array(LUMA) < 1 - _MIN_CONTRAST and rng.uniform() < 0.6 else ink
    shadow = float(rng.uniform(0.1, 0.5)) if rng.uniform() < 0.3 else 0.0
    return Shape(
        side=rng.uniform(*_SHAPE_SIDE),
        icon=rng.uniform(*_ICON_SIDE),
        roundness=roundness,
        fill=fill,
        ground=ground,
        ink=ink,
        shadow=shadow,
    )


def _random_paint(rng: np.random.Generator) -> Paint:
    """Return random paint parameters. Most of them include colours, and some include each of the other effects."""
    angle = rng.uniform(0, 2 * math.pi)
    return Paint(
        palette=_colours(rng, 6) if rng.uniform() < 0.8 else None,
        num_inks=int(rng.integers(1, 4)),
        fills=0.8 if rng.uniform() < 0.7 else 0.0,
        numbers=rng.uniform(0, 1, 256),
        light=(math.cos(angle), math.sin(angle)),
        gradient=rng.uniform(-0.7, 0.7) if rng.uniform() < 0.6 else 0.0,
        bevel=rng.uniform(0.3, 1.5) if rng.uniform() < 0.4 else 0.0,
        highlight=rng.uniform(0.1, 0.5) if rng.uniform() < 0.3 else 0.0,
        glance=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.9)),
        shadow=rng.uniform(0.2, 0.7) if rng.uniform() < 0.35 else 0.0,
        fall=(rng.uniform(0, 0.07), rng.uniform(0, 0.07)),
        outline=_colours(rng, 1)[0] if rng.uniform() < 0.15 else None,
    )


def _colours(rng: np.random.Generator, number: int) -> Float[np.ndarray, "C 3"]:
    return rng.uniform(0, 1, (number, 3)).astype(np.float32)


def _random_ink_and_ground(rng: np.random.Generator) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Return random colours, 0 … 1, for ink and background, whose grey values differ by at least `_MIN_CONTRAST`."""
    while True:
        ink, ground = rng.uniform(0, 1, (2, 3))
        if abs((ink - ground) @ np.array(LUMA)) >= _MIN_CONTRAST:
            return ink, ground
