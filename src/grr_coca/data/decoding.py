"""Functions that subprocesses call on the content of image files; see `isolated.py`.

Each function returns a dict and bytes, and raises a `BadSample` if the file cannot be decoded.

This module imports all decoders, because a subprocess cannot open files after its imports.
"""

import encodings.ascii
import encodings.latin_1
import encodings.utf_8_sig
import encodings.utf_16_be
import encodings.utf_16_le  # noqa: F401
from typing import Any

import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.ImageCms
import PIL.Jpeg2KImagePlugin
import PIL.JpegImagePlugin
import PIL.MpoImagePlugin
import PIL.PngImagePlugin
import PIL.PpmImagePlugin
import PIL.TiffImagePlugin  # noqa: F401
from PIL import Image

from grr_coca.data.images import decode_in_process, decoding_errors, has_more_frames, open_header, with_srgb_colours
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.base import BadSample

Answer = tuple[dict[str, Any], bytes]


def pixels(data: bytes, name: str, *, side: int | None = None, **options: Any) -> Answer:
    """Return the pixels of an image, H W 3, with its width and height, and whether its file has more frames.

    If `side` is given, the image is scaled down to this maximum side, with sRGB colours.
    """
    image = decode_in_process(data, name, is_scaled=side is not None, **options)
    if side is not None:
        image.thumbnail((side, side))
        image = with_srgb_colours(image)
    return {"size": image.size, "more": has_more_frames(image)}, image.tobytes()


def check(data: bytes, name: str, *, renderer: str | None = None) -> Answer:
    """Check that an image can be decoded. The returned dict and bytes are empty."""
    decode_in_process(data, name, renderer=renderer)
    return {}, b""


def square(data: bytes, name: str, *, preprocess: Preprocess, **options: Any) -> Answer:
    """Return the pixels of the model's input square, S S 3, with whether the file has more frames."""
    image = decode_in_process(
        data, name, preprocess.opening, is_scaled=True, vector_side=preprocess.vector_side, **options
    )
    return {"more": has_more_frames(image)}, square_of(image, name, preprocess).tobytes()


def square_of(image: Image.Image, name: str, preprocess: Preprocess) -> Image.Image:
    """Return the model's input square of an image. The message of a `BadSample` names the image."""
    try:
        return preprocess.square(image)
    except BadSample as error:
        raise BadSample(f"{name}: {error}", error.cause) from error


def header(data: bytes, name: str, *, renderer: str | None = None) -> Answer:
    """Return the size (width and height) and the format of an image. The bytes are empty."""
    with decoding_errors(name):
        opened = open_header(data, name, renderer=renderer)
    return {"size": opened.size, "format": opened.format}, b""
