"""Small pictures of images, for reports that hold everything in themselves."""

import base64
import io

from PIL import Image

from grr_coca.data.images import decode_image
from grr_coca.data.sources.pairs import RawPair

SIZE = 96
"""Pixels of the longer side."""
QUALITY = 80


def thumbnail(pair: RawPair) -> bytes:
    """The image of a pair as a small WebP.

    Raises:
        BadSample: it cannot be decoded.
    """
    image = decode_image(pair.image, pair.name)
    image.thumbnail((SIZE, SIZE))
    return as_webp(image)


def as_webp(image: Image.Image) -> bytes:
    """An image as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=QUALITY)
    return buffer.getvalue()


def data_address(webp: bytes) -> str:
    """A WebP as an address that pages can show it by without another file."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode()
