"""Preprocess images to a model's input pixels, without PyTorch.

A drawing can be framed first: its empty border is cropped, and the drawing is placed in a square with a margin.
Otherwise, all drawings that have wide margins, are off centre or are in a corner of a screenshot would look the same to
a model that was trained on framed drawings. Photographs are unchanged, because they fill the image.

Shapes: S image size in pixels.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.data.feature_image import encoder_of_image, enlarge_square, tokens_digest
from grr_coca.data.images import (
    VECTOR_SIDE,
    Opening,
    strips,
    with_srgb_colours,
)
from grr_coca.data.sources.base import BadSample, Cause

if TYPE_CHECKING:
    import numpy as np

# --- Framing of drawings

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge of a rectangle in pixels."""
Colour = tuple[int, int, int]

_MAX_SIDE = 4096
"""Maximum side in pixels of a square that is larger than the shorter side of its image."""

MIN_PIXELS_PER_STRAY = 10
"""Reciprocal of the maximum fraction of a side's pixels that may differ from the background. Of 98 photographs, 8 are
treated as having a background, because a dark sky or a wall reaches all sides. If every second pixel could differ,
there would be 24 such photographs.
"""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Parameters for framing drawings.

    An image has a background if nearly all pixels on each of its four sides have the same colour, the median of all
    four sides. The pixels that differ from the background are the drawing. An image without a background or without a
    drawing is unchanged. An image that is already framed is also unchanged. This is the case if the drawing reaches all
    four sides, or if the image is square and the drawing is large and centred.

    Attributes:
        margin: Margin on each side, as a fraction of the new square's side.
        tolerance: Maximum difference per channel between colours that count as equal.
        min_share, max_shift: Minimum size and maximum distance from the centre of a drawing that counts as framed, as
            fractions of the image's side.
        max_enlargement: Maximum factor by which a drawing is enlarged, relative to its size in the image's centre
            square. The limit prevents a dot from becoming a large disc.

    Raises:
        UserError: If a value is out of range.
    """

    margin: float = 0.08
    tolerance: int = 40
    min_share: float = 0.7
    max_shift: float = 0.07
    max_enlargement: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 0.5:
            raise UserError(f"margin must be at least 0 and below 0.5, got {self.margin}")
        if not 0 <= self.tolerance <= 255:
            raise UserError(f"tolerance must be from 0 to 255, got {self.tolerance}")
        for name in ("min_share", "max_shift"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if not 1 <= self.max_enlargement < math.inf:
            raise UserError(f"max_enlargement must be finite and at least 1, got {self.max_enlargement}")

    def frame(self, image: Image.Image) -> "Frame | None":
        """Return the square around the drawing of an RGB image, or None if the image is not to be framed."""
        sides = _sides(image)
        red, green, blue = (_median(b"".join(side[start::3] for side in sides)) for start in range(3))
        ground, tables = (red, green, blue), []
        for colour in ground:
            low, high = max(0, colour - self.tolerance), min(255, colour + self.tolerance)
            tables.append(b"\xff" * low + bytes(high + 1 - low) + b"\xff" * (255 - high))
        if not all(_is_uniform(side, tables) for side in sides):
            return None
        drawing = _drawing_box(image, [*b"".join(tables)])  # black where the colour is that of the background
        if drawing is None or self._is_framed(drawing, image.size):
            return None
        return Frame(self._square(drawing, min(image.size)), ground)

    def _is_framed(self, drawing: Box, size: tuple[int, int]) -> bool:
        """Return whether a drawing reaches all sides of its image, or is large and centred in a square image."""
        (left, top, right, bottom), (width, height) = drawing, size
        longest, shift = max(right - left, bottom - top), max(abs(left + right - width), abs(top + bottom - height)) / 2
        is_large_in_the_middle = longest >= self.min_share * width and shift <= self.max_shift * width
        return drawing == (0, 0, *size) or (width == height and is_large_in_the_middle)

    def _square(self, drawing: Box, shorter: int) -> Box:
        """Return the square around a drawing. The square may extend beyond the image, whose shorter side is given."""
        left, top, right, bottom = drawing
        longest = max(right - left, bottom - top)
        side = max(longest, round(longest / (1 - 2 * self.margin)), math.ceil(shorter / self.max_enlargement))
        left += (right - left - side) // 2
        top += (bottom - top - side) // 2
        return left, top, left + side, top + side


def _sides(image: Image.Image) -> list[bytes]:
    """Return the pixels on the upper, lower, left and right side of an RGB image."""
    width, height = image.size
    boxes = ((0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height))
    return [image.crop(box).tobytes() for box in boxes]


def _median(values: bytes) -> int:
    """Return the lower median. The values are not sorted if more than half of them equal the first, as in drawings."""
    first = values[0]
    return first if 2 * values.count(first) > len(values) else sorted(values)[(len(values) - 1) // 2]


def _is_uniform(side: bytes, tables: list[bytes]) -> bool:
    """Return whether only a few pixels of a side differ from the background.

    There is one table per channel, in which 255 marks the values that differ.
    """
    red, green, blue = (int.from_bytes(side[start::3].translate(table)) for start, table in enumerate(tables))
    num_pixels = len(side) // 3
    return MIN_PIXELS_PER_STRAY * (red | green | blue).to_bytes(num_pixels).count(255) <= num_pixels


def _drawing_box(image: Image.Image, table: list[int]) -> Box | None:
    """Return the box around all pixels that a table does not map to black, or None if there are no such pixels."""
    left, top, right, bottom, below = image.width, image.height, 0, 0, 0
    for strip in strips(image):
        box = _map_values(strip, table).getbbox()
        if box is not None:
            left, top, right, bottom = min(left, box[0]), min(top, below + box[1]), max(right, box[2]), below + box[3]
        below += strip.height
    return (left, top, right, bottom) if right else None


def _map_values(image: Image.Image, table: list[int]) -> Image.Image:
    """Map the values of an image by a table. `Image.point` does the same, but first rounds each value of the table."""
    return image._new(image.im.point(table, None))


class Frame(NamedTuple):
    """Square around a drawing, in pixels of its image. `ground` is the colour outside the image."""

    box: Box
    ground: Colour

    def cut(self, image: Image.Image) -> Image.Image:
        """Crop the square from the image.

        A square that is larger than both `_MAX_SIDE` and the image's shorter side is scaled down.
        """
        left, top, right, bottom = self.box
        if right - left > max(_MAX_SIDE, min(image.size)):
            return self._cut_small(image)
        if left >= 0 and top >= 0 and right <= image.width and bottom <= image.height:
            return image.crop(self.box)
        square = Image.new("RGB", (right - left, bottom - top), self.ground)
        square.paste(image, (-left, -top))
        square.info = dict(image.info)
        return square

    def _cut_small(self, image: Image.Image) -> Image.Image:
        """Return the square around a long and thin drawing, scaled down.

        At full size, the square could have billions of pixels.
        """
        left, top, right, bottom = self.box
        scale = _MAX_SIDE / (right - left)
        seen = max(0, left), max(0, top), min(right, image.width), min(bottom, image.height)
        size = max(1, round((seen[2] - seen[0]) * scale)), max(1, round((seen[3] - seen[1]) * scale))
        square = Image.new("RGB", (_MAX_SIDE, _MAX_SIDE), self.ground)
        scaled = image.resize(size, Image.Resampling.BICUBIC, box=seen)
        square.paste(scaled, (round((seen[0] - left) * scale), round((seen[1] - top) * scale)))
        square.info = dict(image.info)
        return square


# --- Preprocessing

Order = Literal["crop_then_resize", "resize_then_crop"]

_MAX_RESIZED_PIXELS = 10_000_000
"""Maximum number of pixels of a resized image. If it would be larger, only the part inside the crop is resized."""

_IS_SQUARE = "is_square"
"""Key of `Image.info` that marks a model's input square with the value True, which cannot come from a file."""


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing that takes the centre square of an image, or the square around a framed drawing, and resizes it.

    The model then normalizes the pixels by mean and standard deviation.

    The preprocessing is stored in every checkpoint, because a model needs the preprocessing with which it was trained.

    Attributes:
        image_size: Side of the model's input square in pixels, S.
        mean, std: Statistics of each channel, for pixel values 0 … 1.
        order: Order of cropping and resizing. open_clip resizes first, which changes pixels at the edges of the square.
        opening: How image files are opened.
        framing: How drawings are framed. If None, the centre square of every image is used.

    Raises:
        UserError: If a mean or std is not finite, or a std is not above 0.
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
            raise UserError(f"mean and std must be finite and std above 0, got {self.mean} and {self.std}")

    def __call__(self, image: Image.Image) -> "np.ndarray":
        """Return the input pixels of an engine for an RGB image of any size: uint8, S S 3."""
        import numpy as np  # lazy import, because subprocesses do not need it

        return np.array(self.square(image))

    def decode(
        self,
        data: bytes,
        name: str,
        *,
        to_srgb: bool = True,
        for_display: bool = False,
        **options: Any,
    ) -> Image.Image:
        """Decode the bytes of an image file at full size, in a subprocess.

        Args:
            data: Content of the file.
            name: Name of the file in messages.
            to_srgb: Whether to convert the colours of an embedded profile.
            for_display: Whether the image is also displayed. An SVG file is then drawn with sides of `VECTOR_SIDE`
                pixels. Otherwise, it is drawn at no more than twice the model's input size, because drawing takes
                longer than all other steps.
            **options: Additional arguments of `decode_in_process`.

        Raises:
            BadSample: If the file cannot be decoded, or decoding exceeds a limit.
        """
        from grr_coca.data.isolated import decode_image  # lazy import, because subprocesses do not need it

        side = VECTOR_SIDE if for_display else self.vector_side
        return decode_image(data, name, self.opening, to_srgb=to_srgb, vector_side=side, **options)

    def decode_square(self, data: bytes, name: str, *, to_srgb: bool = True, **options: Any) -> Image.Image:
        """Decode the bytes of an image file in a subprocess, and return the model's input square.

        Args:
            data: Content of the file.
            name: Name of the file in messages.
            to_srgb: Whether to convert the colours of an embedded profile.
            **options: Additional arguments of `decode_in_process`.

        Raises:
            BadSample: If the file cannot be decoded, or decoding exceeds a limit.
        """
        from grr_coca.data.isolated import call_helper

        return self.to_square(*call_helper("square", data, name, preprocess=self, to_srgb=to_srgb, **options))

    def decode_squares(
        self, files: Iterable[tuple[bytes | UserError, str]], *, to_srgb: bool = True
    ) -> Iterator[Image.Image | UserError]:
        """Decode several image files, and yield a square or an error for each; see `decode_square`.

        Args:
            files: Content (or error) and name of each file. Files are consumed a few at a time.
            to_srgb: Whether to convert the colours of embedded profiles.
        """
        from grr_coca.data.isolated import call_helpers

        for answer in call_helpers("square", files, preprocess=self, to_srgb=to_srgb):
            try:
                square = answer if isinstance(answer, UserError) else self.to_square(*answer)
            except BadSample as error:
                square = error
            yield square

    def to_square(self, facts: Mapping[str, Any], pixels: memoryview) -> Image.Image:
        """Return the model's input square from the answer of a subprocess: facts, and pixels S S 3.

        Raises:
            ValueError: If the number of bytes does not match `image_size`.
        """
        from grr_coca.data.isolated import to_image

        square = to_image({**facts, "size": (self.image_size, self.image_size)}, pixels)
        square.info[_IS_SQUARE] = True
        return square

    @property
    def vector_side(self) -> int:
        """Side, in pixels, at which drawings are rendered for the model."""
        return min(2 * self.image_size, VECTOR_SIDE)

    def square(self, image: Image.Image) -> Image.Image:
        """Crop and resize an RGB image to a square with sides of `image_size` pixels.

        If `open_rgb` has deferred the conversion of colours to sRGB, they are converted after scaling. A framed square
        that this method has returned, and a square from `to_square`, are returned unchanged.

        By default, the image is cropped before it is resized, because otherwise an image of 1 × 10,000 pixels would
        first become 64 × 640,000 pixels if `image_size` is 64.

        Raises:
            BadSample: If the image contains features, which only `FeaturePreprocess` accepts.
        """
        if self.is_square(image):
            return image
        if encoder_of_image(image) is not None:
            raise BadSample(
                "features of an image encoder, but this model takes images; pass the image", Cause.NOT_AN_IMAGE
            )
        if self.framing is None:
            return with_srgb_colours(self._resize(image))
        frame = self.framing.frame(image)
        square = with_srgb_colours(self._resize(image if frame is None else frame.cut(image)))
        square = square.copy() if square is image else square
        square.info[_IS_SQUARE] = True
        return square

    def is_square(self, image: Image.Image) -> bool:
        """Return whether an image is marked as a square that `square` (with framing) or `to_square` has returned."""
        return image.info.get(_IS_SQUARE) is True and image.size == (self.image_size, self.image_size)

    def visible_box(self, image: Image.Image) -> Box:
        """Return the box of an RGB image that becomes the model's input square, in pixels of the image.

        A framed box may extend beyond the image.
        """
        frame = None if self.framing is None else self.framing.frame(image)
        return _centre_box(image.size, min(image.size)) if frame is None else frame.box

    def cut(self, image: Image.Image) -> Image.Image:
        """Return the part of an RGB image that becomes the model's input square, before it is resized."""
        frame = None if self.framing is None else self.framing.frame(image)
        return image.crop(_centre_box(image.size, min(image.size))) if frame is None else frame.cut(image)

    def _resize(self, image: Image.Image) -> Image.Image:
        if image.size == (self.image_size, self.image_size):
            return image
        if self.order == "resize_then_crop":
            return _resize_then_crop(image, self.image_size)
        square, size = _centre_box(image.size, min(image.size)), (self.image_size, self.image_size)
        cropped = image if image.width == image.height else image.crop(square)
        return cropped.resize(size, Image.Resampling.BICUBIC)


def _centre_box(size: tuple[int, int], side: int) -> Box:
    """Return the box of a centred square with sides of `side` pixels: left, upper, right, lower."""
    left, top = (round((length - side) / 2) for length in size)
    return left, top, left + side, top + side


def _resize_then_crop(
    image: Image.Image,
    side: int,
    shorter: int | None = None,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Resize an image and crop its centre square, like torchvision's `Resize` and `CenterCrop`.

    The shorter side of the image is resized to `shorter` pixels (default: `side`), and the square has sides of `side`
    pixels.
    """
    shorter = side if shorter is None else shorter
    width, height = (int(shorter * length / min(image.size)) for length in image.size)
    square = _centre_box((width, height), side)
    if width * height <= _MAX_RESIZED_PIXELS:
        return image.resize((width, height), resampling).crop(square)
    across, down = image.width / width, image.height / height
    left, top, right, bottom = square
    box = (left * across, top * down, right * across, bottom * down)
    return image.resize((side, side), resampling, box=box)


# --- Preprocessing of external image encoders

Fit = Literal["crop", "squash"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]


@dataclass(frozen=True, kw_only=True)
class EncoderPreprocess(Preprocess):
    """Preprocessing of an external image encoder.

    With the order "resize_then_crop", it is the same as in timm and transformers. A framed drawing is not cropped.

    Attributes:
        fit: Method of making an image square: `crop` resizes the shorter side to `image_size / crop` and takes the
            centre, and `squash` resizes both sides to `image_size`.
        crop: Fraction of the shorter side that is used, above 0 and at most 1.
        interpolation: Method of resizing.

    Raises:
        UserError: If `image_size` or `crop` is out of range; see also `Preprocess`.
    """

    fit: Fit = "crop"
    crop: float = 1.0
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.image_size <= _MAX_SIDE:
            raise UserError(f"image_size must be from 1 to {_MAX_SIDE}, got {self.image_size}")
        if not 0 < self.crop <= 1:
            raise UserError(f"crop must be above 0 and at most 1, got {self.crop}")

    def _resize(self, image: Image.Image) -> Image.Image:
        size, resampling = (self.image_size,) * 2, Image.Resampling[self.interpolation.upper()]
        if self.order == "crop_then_resize" and self.fit == "crop" and self.crop == 1:
            return super()._resize(image)
        if self.fit == "squash" or (self.framing is not None and image.width == image.height):
            return image if image.size == size else image.resize(size, resampling)
        return _resize_then_crop(image, self.image_size, math.floor(self.image_size / self.crop), resampling)


@dataclass(frozen=True, kw_only=True)
class FeaturePreprocess(EncoderPreprocess):
    """Preprocessing of a model that takes features of an image encoder as squares of pixels; see `feature_image`.

    Attributes:
        encoder: Name of the encoder.
        digest: Digest of the encoder.
        takes_images: Whether ordinary images are also accepted, because the encoder is available.
        keep: Features that the model takes: the mean token, which the square contains, or all tokens, which must be
            stored in a folder that this process reads.
    """

    encoder: str
    digest: str
    takes_images: bool
    keep: Literal["tokens", "mean"]

    def to_square(self, facts: Mapping[str, Any], pixels: memoryview) -> Image.Image:
        """Return the square from the answer of a subprocess; see `Preprocess.to_square`.

        Raises:
            BadSample: If the model takes all tokens, and the square contains features whose tokens are not stored.
            ValueError: If the number of bytes does not match `image_size`.
        """
        square = super().to_square(facts, pixels)
        if self.keep == "tokens" and encoder_of_image(square) is not None:
            from grr_coca.data.stored_tokens import find_tokens  # lazy import, because subprocesses do not need it

            digest = tokens_digest(square.tobytes())
            if digest is None or find_tokens(self.digest, digest) is None:
                raise BadSample(
                    "the features have no stored tokens here, but this model takes all tokens of images; compute them "
                    "with `grr-coca data features --keep tokens`, and pass that folder",
                    Cause.NOT_AN_IMAGE,
                )
        return square

    def square(self, image: Image.Image) -> Image.Image:
        """Return a square with the features that an image contains, or the encoder's input square of an ordinary image.

        Raises:
            BadSample: If the features come from another encoder, or ordinary images are not accepted.
        """
        found = encoder_of_image(image)
        if found is None and self.takes_images:
            return super().square(image)
        if found is None:
            message = (
                f"an image, but this model takes features of {self.encoder}, which cannot be opened here; pass features"
            )
            raise BadSample(message, Cause.NOT_AN_IMAGE)
        if found != self.digest:
            raise BadSample(
                f"features of another image encoder than {self.encoder}; compute them again", Cause.NOT_AN_IMAGE
            )
        return image if image.width == self.image_size else enlarge_square(image, self.image_size)
