"""Small pictures of images, for reports that hold everything in themselves.

The pictures of a study's showcase, beside its ledger: a report shows them with what each model says.
"""

import base64
import io
from pathlib import Path

from PIL import Image

from grr_coca.data.images import decode_image
from grr_coca.data.sources.base import RawPair

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


SHOWCASE_FOLDER = "showcase"
"""Holds a small WebP of each image that is captioned to be shown, as `STAGE/KEY.webp`."""


def picture_path(folder: Path, stage: str, key: str) -> Path:
    """Where the picture of an image lies.

    Args:
        folder: of the study.
        stage: whose showcase it is in.
        key: of the pair, which may be a path.
    """
    return folder / SHOWCASE_FOLDER / stage / f"{key.replace('/', '_')}.webp"
