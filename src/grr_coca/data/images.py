"""Decode image files to RGB in this process, with errors that name the file and the cause.

Untrusted files are decoded in subprocesses, which call `decode_in_process`; see `isolated.py`. A plug-in renders SVG
files, and pillow-heif decodes HEIC files.

Importing NumPy doubles the start time of a subprocess. Few files need NumPy, so it is imported only for these files.

Shapes: H height, W width.
"""

import io
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, cast

import PIL.WebPImagePlugin  # noqa: F401 (otherwise the first WebP file makes Pillow load all forty plugins)
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from grr_coca.common.errors import pip_install_command
from grr_coca.data.image_caps import MAX_PIXELS, is_usable_profile, require_within_caps
from grr_coca.data.sources.base import BadSample, Cause

if TYPE_CHECKING:
    import numpy as np
    from PIL import ImageCms

MAX_BYTES = 2**28
"""Maximum file size in bytes. Larger files are rejected before they are read."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Accepted image formats besides SVG, AVIF and HEIC. Pillow reads more formats, but needs Ghostscript for some."""

VECTOR_SIDE = 256
"""Side, in pixels, at which drawings such as SVG files are rendered for display, because they have no size in pixels.
For models, this is the maximum side at which drawings are rendered."""

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})

_MAX_BRANDS = 4096
"""Maximum number of bytes of the file's first box in which brands are searched."""

Opening = Literal["upright_on_white", "as_stored"]
"""How to open an image: rotated by its EXIF data and with transparent parts over white (`upright_on_white`), or with
unchanged pixels as in open_clip (`as_stored`)."""

_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL(\.|$)"), 0)
"""Filter that ignores Pillow warnings, in the form of `warnings.filters`."""

BROKEN = (
    ArithmeticError,
    AssertionError,  # the error has no message, for example for a PNG file without its palette
    AttributeError,
    EOFError,
    Image.DecompressionBombError,  # decoding may raise this, although no accepted format raises it today
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
"""Exceptions that Pillow and pillow-heif raise for corrupt files. The values in a corrupt header can have any type,
so the exceptions are of many types."""

_UPRIGHT_OPERATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operations that turn an image upright, by EXIF orientation."""

_PNG = b"\x89PNG"
_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (_PNG, "PNG"), (b"RIFF", "WEBP"))


def decode_in_process(
    data: bytes,
    name: str,
    opening: Opening = "upright_on_white",
    *,
    to_srgb: bool = False,
    is_scaled: bool = False,
    at_least: tuple[int, int] | None = None,
    above: int = 0,
    max_pixels: int = MAX_PIXELS,
    vector_side: int = VECTOR_SIDE,
    renderer: str | None = None,
) -> Image.Image:
    """Decode the bytes of an image file into an RGB image, in this process.

    The formats are JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, SVG, AVIF and HEIC. The suffix of the file does not
    matter. Only the first of several frames or pages is used; see `has_more_frames`. By default, EXIF rotation is
    applied, and transparent parts are composited over white. Grey values with 16 bits or in floating point are scaled
    to 8 bits.

    Args:
        data: Content of the file.
        name: Name of the file in messages.
        opening: `as_stored` ignores EXIF rotation, transparency and colour profiles.
        to_srgb: Whether to convert the colours of an embedded ICC profile to sRGB. This is for inference; training uses
            the stored pixels.
        is_scaled: Whether the caller will scale the image down and then call `with_srgb_colours`. The colours are then
            not converted here, because converting a large image would take several times as long as decoding it.
        at_least: Sufficient width and height of the result, before the image is turned upright. A JPEG file is decoded
            at a half, a quarter or an eighth of its size if the result is at least this large. This saves memory and
            time, but changes pixels slightly. If None, the image is decoded at full size.
        above: Number of pixels up to which JPEG files are always decoded at full size.
        max_pixels: Maximum number of pixels. Larger images are rejected.
        vector_side: Side in pixels at which an SVG file is drawn; see `VectorFormat`.
        renderer: Name of the imported module that renders a drawing. None if the file is not a drawing.

    Raises:
        BadSample: If the file is not an image, is corrupt or truncated, has more than `max_pixels` pixels, or a part
            exceeds a limit of `image_caps`, or if its format needs a package that is not installed.
    """
    with decoding_errors(name, may_lack_memory=data.startswith((b"RIFF", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"))):
        opened = open_header(data, name, vector_side, renderer)
        _require_size(opened.width, opened.height, name, max_pixels)
        if at_least is not None and opened.width * opened.height > above:
            opened.draft(None, at_least)
        opened.load()
        image = open_rgb(opened, opening, to_srgb=to_srgb, is_scaled=is_scaled)
        if _is_first_of_several(opened):
            image.info[FIRST_OF_SEVERAL] = True
    return image


@contextmanager
def decoding_errors(name: str, *, may_lack_memory: bool = False) -> Iterator[None]:
    """Convert decoder errors in the context to a `BadSample` that names the file. Pillow warnings are ignored.

    Args:
        name: Name of the file in messages.
        may_lack_memory: Whether the file's decoder (WebP, JPEG 2000) also reports a lack of memory as a corrupt file.
    """
    ignore_pillow_warnings()
    try:
        yield
    except BadSample:
        raise
    except UnidentifiedImageError as error:
        raise BadSample(f"{name}: not an image in a supported format; use JPEG or PNG", Cause.NOT_AN_IMAGE) from error
    except BROKEN as error:
        reason = str(error).strip() or "missing data"
        broken = BadSample(f"{name}: broken or truncated image ({reason}); replace it", Cause.BROKEN_IMAGE)
        broken.may_lack_memory = may_lack_memory
        raise broken from error


def ignore_pillow_warnings() -> None:
    """Ignore Pillow warnings about large images and odd metadata, because these warnings do not name the file.

    The filter affects only warnings of Pillow, and is permanent. `catch_warnings` would not work, because images are
    decoded in several threads. If two threads used it at the same time, a filter for all warnings might remain.
    """
    # the first filter takes precedence, and other code may have inserted another filter before this one
    if warnings.filters[:1] != [_PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS[3].pattern)


def open_header(data: bytes, name: str, vector_side: int = VECTOR_SIDE, renderer: str | None = None) -> Image.Image:
    """Open an image and read its header, in this process. No pixels are decoded, but SVG files are drawn.

    Raises:
        BadSample: If the file is empty, the image has more than `MAX_PIXELS` pixels, a part of the file exceeds its
            limit, the format needs a package that is not installed, or a drawing cannot be rendered.
        One of `BROKEN`: If the file is corrupt or not an image.
    """
    if not data:
        raise BadSample(f"{name}: not an image: the file is empty; replace it", Cause.EMPTY_FILE)
    if renderer is not None:
        drawn: Image.Image = sys.modules[renderer].render(data, name, vector_side)
        return drawn
    require_within_caps(data, name)
    kind = _container_kind(data)
    if kind == "HEIC":
        try:
            from pillow_heif import HeifImageFile  # lazy import, because it needs an extra
        except (ImportError, OSError) as error:  # a subprocess cannot open files
            message = f"{name}: a HEIC file, which needs pillow-heif; run: {pip_install_command('pillow-heif')}"
            raise BadSample(message, Cause.NOT_INSTALLED) from error
        # libheif already rotates the pixels, and removes the orientation from the EXIF data.
        image = HeifImageFile(io.BytesIO(data))
        _require_size(image.width, image.height, name)
        return image
    if data.startswith((b"P5", b"P6")):
        data = _scale_ppm_range(data)
    likely = (kind,) if kind else tuple(known for magic, known in _MAGIC if data.startswith(magic))
    try:
        image = Image.open(io.BytesIO(data), formats=likely or _FORMATS)
    except Image.DecompressionBombError as error:
        num_pixels = re.search(r"\d+", str(error))  # only the message has it
        raise _pixel_limit_error(name, int(num_pixels[0]) if num_pixels else None) from error
    _require_size(*image.size, name)
    return image


def _container_kind(data: bytes) -> Literal["AVIF", "HEIC"] | None:
    """Return the format of a file in an ISO 14496-12 container, according to the brands in its first box.

    The result is None for all other files.
    """
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), _MAX_BRANDS)
    brands = {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & _HEIF_BRANDS else None


FIRST_OF_SEVERAL = "first_of_several"
"""Key of `Image.info` that marks an image from a file with several frames or pages. It is kept when the image is
cropped or scaled."""


def has_more_frames(image: Image.Image) -> bool:
    """Return whether an image is the first of several frames or pages of the file from which it was decoded."""
    return FIRST_OF_SEVERAL in image.info


def _is_first_of_several(opened: Image.Image) -> bool:
    """Return whether the file is an animation or has several pages.

    A JPEG file may contain additional images, such as a preview or a gain map for HDR screens (MPO), which do not count
    as frames.
    """
    if opened.format == "MPO":
        return False
    try:
        return bool(getattr(opened, "is_animated", False))
    except Exception:  # a corrupt second frame does not affect the first
        return False


_BETWEEN = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PPM = re.compile(rb"P([56])" + 3 * (_BETWEEN + rb"(\d{1,9})") + rb"\s")


def _scale_ppm_range(data: bytes) -> bytes:
    """Return a PPM file whose samples are scaled to 0 … 255 or, if grey with more than 8 bits, to 0 … 65,535.

    Pillow would scale each sample in Python, which would take 20 seconds for a 16-bit photograph.
    """
    found = _PPM.match(data, 0, 2**16)
    if found is None:
        return data
    kind, width, height, most = map(int, found.groups())
    full = 65535 if kind == 5 and most > 255 else 255
    if most == full or not 0 < most < 2**16:
        return data
    import numpy as np

    size = 2 if most > 255 else 1
    num_samples = min(width * height * (3 if kind == 6 else 1), (len(data) - found.end()) // size)
    samples = np.frombuffer(data, f">u{size}", num_samples, found.end())
    values = np.minimum(np.arange(2 ** (8 * size)) / most, 1) * full
    table = np.rint(values).astype(">u2" if full > 255 else np.uint8)
    # The samples are scaled in parts, because indexing the table takes eight bytes of memory per sample.
    parts = (samples[start : start + _STRIP_PIXELS] for start in range(0, num_samples, _STRIP_PIXELS))
    return b"P%d %d %d %d\n" % (kind, width, height, full) + b"".join(table[part].tobytes() for part in parts)


def _require_size(width: int, height: int, name: str, limit: int | None = None) -> None:
    limit = MAX_PIXELS if limit is None else limit
    if width * height > limit:
        raise _pixel_limit_error(name, width * height, limit)


def _pixel_limit_error(name: str, num_pixels: int | None, limit: int = MAX_PIXELS) -> BadSample:
    size = f": {num_pixels:,}" if num_pixels else ""
    message = f"{name}: too many pixels{size} (limit {limit:,}); scale the image down first"
    return BadSample(message, Cause.TOO_LARGE)


def open_rgb(
    image: Image.Image, opening: Opening = "upright_on_white", *, to_srgb: bool = False, is_scaled: bool = False
) -> Image.Image:
    """Convert an opened Pillow image to RGB; see `decode_in_process` for the arguments.

    The pixels are read from the image's file if necessary. Errors of Pillow are passed on; see `BROKEN`.
    """
    if opening == "as_stored":
        return _to_rgb(image, opening)
    image = _turn_upright(image)
    profile = image.info.get("icc_profile") if to_srgb else None
    if not profile:
        return _to_rgb(image, opening)
    if is_scaled and image.mode == "RGB" and not image.has_transparency_data:
        image = _to_rgb(image, opening)
        image.info[_PROFILE] = image.info.pop("icc_profile", profile)
        return image
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    return _to_rgb(_convert_to_srgb(image, profile), opening)


def _to_rgb(image: Image.Image, opening: Opening) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.has_transparency_data and opening == "upright_on_white":
        return _convert_strips(image, "RGB", _composite_on_white)
    return _without_file(image) if image.mode == "RGB" else image.convert("RGB")


def _composite_on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    import numpy as np

    # Floating-point images have no fixed range, so the smallest value becomes black, and the largest becomes white.
    low, high = _finite_range(image) if image.mode == "F" else (0.0, 0.0)
    transparent = image.info.get("transparency")  # the grey value that is transparent in a PNG

    def convert(strip: Image.Image) -> Image.Image:
        values = _to_numbers(strip)
        if image.mode == "F":
            values = np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low
            values *= 65535 / max(high - low, 1e-12)
        grey = Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
        if transparent is not None:
            grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        return grey

    return _convert_strips(image, "L" if transparent is None else "LA", convert)


def _finite_range(image: Image.Image) -> tuple[float, float]:
    """Return the smallest and the largest finite value of a floating-point image, or zeros if no value is finite."""
    import numpy as np

    low, high = np.inf, -np.inf
    for strip in strips(image):
        values = _to_numbers(strip)
        finite = values[np.isfinite(values)]
        low, high = min(low, finite.min(initial=np.inf)), max(high, finite.max(initial=-np.inf))
    return (float(low), float(high)) if low <= high else (0.0, 0.0)


def _to_numbers(image: Image.Image) -> "np.ndarray":
    import numpy as np

    with np.errstate(invalid="ignore"):  # a signalling NaN
        return np.asarray(image, dtype=np.float64)


_STRIP_PIXELS = 2**18
"""Number of pixels converted at a time. Converting a large image in one piece would need several times its memory."""


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the image in strips of whole rows, from top to bottom."""
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _convert_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to another mode, strip by strip. The conversion must treat each pixel separately."""
    if image.width * image.height <= _STRIP_PIXELS:
        converted = convert(image)
        converted.info = {}
        return converted
    converted, top = Image.new(mode, image.size), 0
    for strip in strips(image):
        converted.paste(convert(strip), (0, top))
        top += strip.height
    return converted


def _without_file(image: Image.Image) -> Image.Image:
    """Return the image without a reference to its file.

    The pixels are shared, because a copy of a large image would double its memory.
    """
    image.load()
    return image._new(image.im)


def _turn_upright(image: Image.Image) -> Image.Image:
    """Return the image after rotation by its EXIF orientation.

    Only the orientation is read from the EXIF data. Pillow's `exif_transpose` also rewrites these data, and fails if
    any tag has the wrong type, although such a tag does not affect the pixels.
    """
    image.load()  # the EXIF data may follow the pixels
    try:
        turn = _UPRIGHT_OPERATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # corrupt EXIF data raise many types of errors, and do not affect the pixels
        turn = None
    if turn is None:
        return image
    upright = image.transpose(turn)
    # The EXIF data are dropped, because they would rotate the image again when it is opened again.
    upright.info = {key: value for key, value in image.info.items() if key in ("transparency", "icc_profile")}
    return upright


# --- Colour profiles

_IDENTITY_TOLERANCE = 2
"""Maximum difference from sRGB, in values of 0 … 255, at which a profile counts as sRGB."""
_GRID = bytes(255 * step // 8 for step in range(9))
"""Channel values at which a profile is compared with sRGB."""


_PROFILE = "profile_to_convert"
"""Key of `Image.info` for the colour profile of an image whose colours are converted after scaling. It is kept when the
image is cropped or scaled."""


def with_srgb_colours(image: Image.Image) -> Image.Image:
    """Convert an RGB image to sRGB if `open_rgb` has deferred the conversion. Other images are returned unchanged."""
    profile = image.info.get(_PROFILE)
    if profile is None:
        return image
    is_first_of_several = has_more_frames(image)
    image = _convert_to_srgb(image, profile)
    image.info = {FIRST_OF_SEVERAL: True} if is_first_of_several else {}
    return image


def _convert_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert the colours of an image with an ICC profile to sRGB.

    Profiles that are corrupt, unusable (`is_usable_profile`) or for other channels are ignored.

    Returns:
        An image without the profile, so that its colours are not converted again when it is opened again.
    """
    from PIL import ImageCms  # lazy import, because few images need it

    has_alpha = image.has_transparency_data
    mode = {"CMYK": "CMYK", "L": "L", "LA": "L", "1": "L"}.get(image.mode, "RGB")
    try:
        transform = _build_srgb_transform(profile, mode) if is_usable_profile(profile) else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        transform = None
    if transform is None:
        image = _without_file(image)
        image.info.pop("icc_profile", None)
        return image

    def convert(strip: Image.Image) -> Image.Image:
        converted = cast(Image.Image, ImageCms.applyTransform(strip.convert(mode), transform))
        if has_alpha:
            converted.putalpha(strip.convert("RGBA").getchannel("A"))
        return converted

    return _convert_strips(image, "RGBA" if has_alpha else "RGB", convert)


@lru_cache(maxsize=8)  # each key and transform contains its profile, at most 64 MB in total
def _build_srgb_transform(profile: bytes, mode: str) -> "ImageCms.ImageCmsTransform | None":
    """Return the transform from a profile's colours to sRGB, or None if the profile is that of sRGB.

    Raises:
        PyCMSError: If the profile is corrupt, or is not for this mode.
    """
    from PIL import ImageCms

    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return transform
    values = b"".join(map(bytes, product(_GRID, repeat=3))) if mode == "RGB" else _GRID
    grid = Image.frombytes(mode, (len(values) // len(mode), 1), values)
    shift = ImageChops.difference(cast(Image.Image, ImageCms.applyTransform(grid, transform)), grid.convert("RGB"))
    most = max(high for _, high in cast(tuple[tuple[int, int], ...], shift.getextrema()))
    return None if most <= _IDENTITY_TOLERANCE else transform


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image as a file. `kind` and `options` are arguments of `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
