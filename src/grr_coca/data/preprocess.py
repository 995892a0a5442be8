"""Preprocessing: from an image to the pixels that a model sees. This needs no PyTorch.

Shapes: S image size in pixels.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import UInt8
from grr_coca.data.framing import Box, Framing
from grr_coca.data.images import VECTOR_SIDE, Opening, decode_image, with_srgb_colours

Order = Literal["crop_then_resize", "resize_then_crop"]

_MAX_RESIZED_PIXELS = 10_000_000
"""If the resized image would have more pixels, only the part inside the crop is resized."""

_IS_FRAMED = "is_framed"
"""Key of `Image.info` of a square, with the value True, which no file can bring."""


@dataclass(frozen=True)
class Preprocess:
    """Frame the drawing or take the centre square, and resize it. The model then normalizes pixels by mean and standard
    deviation.

    Every checkpoint stores it, because a model needs the preprocessing of its training. `mean`, `std`: of each channel,
    for pixel values 0 … 1. `order`: open_clip resizes before it crops, which gives other pixels at the edges of the
    square. `opening`: how image files are opened. `framing`: how drawings are framed; None takes the centre square of
    every image.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    order: Order = "crop_then_resize"
    opening: Opening = "upright_on_white"
    _: KW_ONLY
    framing: Framing | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std}: give finite numbers, and a std above 0")

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "S S 3"]:
        """The pixels of an RGB image of any size, as an engine takes them. `data.tensors` makes a tensor of them."""
        return np.array(self.square(image))

    def decode(
        self,
        data: bytes,
        name: str,
        *,
        to_srgb: bool = True,
        at_least: tuple[int, int] | None = None,
        for_people: bool = False,
    ) -> Image.Image:
        """Decode the bytes of an image file, see `decode_image`.

        Args:
            data: the content of the file.
            name: the name of the file in messages.
            to_srgb: convert the colours of an embedded profile.
            at_least: width and height that are enough.
            for_people: the image is also shown. An SVG file is then drawn in full size, instead of twice the size that
                the model sees: drawing takes longer than all the rest.

        Raises:
            BadSample: the file cannot be decoded.
        """
        vector_side = VECTOR_SIDE if for_people else min(2 * self.image_size, VECTOR_SIDE)
        return decode_image(
            data, name, self.opening, to_srgb=to_srgb, is_scaled=True, at_least=at_least, vector_side=vector_side
        )

    def square(self, image: Image.Image) -> Image.Image:
        """Cut and resize an image to a square of `image_size` pixels, with colours in sRGB. An image that this has
        returned is not changed again.

        By default it is cut first: otherwise an image of 1 × 10,000 pixels would become 64 × 640,000.
        """
        if self.framing is None:
            return with_srgb_colours(self._resized(image))
        if image.info.get(_IS_FRAMED) is True and image.size == (self.image_size, self.image_size):
            return image
        frame = self.framing.frame(image)
        square = with_srgb_colours(self._resized(image if frame is None else frame.cut(image)))
        square = square.copy() if square is image else square
        square.info[_IS_FRAMED] = True
        return square

    def seen(self, image: Image.Image) -> Box:
        """The square of an image that a model sees, in pixels of the image. It may reach beyond the image."""
        frame = None if self.framing is None else self.framing.frame(image)
        return _centre(image.size, min(image.size)) if frame is None else frame.box

    def cut(self, image: Image.Image) -> Image.Image:
        """The square of an image that a model sees, in full size."""
        frame = None if self.framing is None else self.framing.frame(image)
        return image.crop(_centre(image.size, min(image.size))) if frame is None else frame.cut(image)

    def _resized(self, image: Image.Image) -> Image.Image:
        if image.size == (self.image_size, self.image_size):
            return image
        if self.order == "resize_then_crop":
            return _resize_then_crop(image, self.image_size)
        square, size = _centre(image.size, min(image.size)), (self.image_size, self.image_size)
        cropped = image if image.width == image.height else image.crop(square)
        return cropped.resize(size, Image.Resampling.BICUBIC)


def _centre(size: tuple[int, int], side: int) -> Box:
    """The box of a square in the middle of an image, with sides of `side` pixels: left, upper, right, lower."""
    left, top = (round((length - side) / 2) for length in size)
    return left, top, left + side, top + side


def _resize_then_crop(image: Image.Image, side: int) -> Image.Image:
    """As in torchvision: `Resize` of the shorter side, then `CenterCrop`."""
    width, height = (int(side * length / min(image.size)) for length in image.size)
    square = _centre((width, height), side)
    if width * height <= _MAX_RESIZED_PIXELS:
        return image.resize((width, height), Image.Resampling.BICUBIC).crop(square)
    across, down = image.width / width, image.height / height
    left, top, right, bottom = square
    box = (left * across, top * down, right * across, bottom * down)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)
