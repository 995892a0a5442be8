"""Thumbnails for reports: small WebP files, and those of a study's showcase next to its ledger."""

import io
from pathlib import Path

from PIL import Image

from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.base import RawPair

_SIDE = 96
"""Length of the longer side in pixels."""
_QUALITY = 80

EXHIBITS, LISTING = "exhibits", "exhibits.json"
"""Folder of a demo's pictures, and the file in it that lists them."""
SHOWCASE_FOLDER = "showcase"
"""Folder of the thumbnails of captioned images in a study's folder, as `STAGE/KEY.webp`."""


def thumbnail(pair: RawPair) -> bytes:
    """Return the thumbnail of a pair's image as WebP.

    Raises:
        BadSample: If the image cannot be decoded.
    """
    image = decode_image(pair.image, pair.name)
    image.thumbnail((_SIDE, _SIDE))
    return as_webp(image)


def as_webp(image: Image.Image) -> bytes:
    """Return an image as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=_QUALITY)
    return buffer.getvalue()


def thumbnail_path(folder: Path, stage: str, key: str) -> Path:
    """Return the path of the thumbnail of a captioned image.

    Args:
        folder: Folder of the study.
        stage: Stage of the showcase.
        key: Key of the pair, which may be a path.
    """
    return folder / SHOWCASE_FOLDER / stage / f"{key.replace('/', '_')}.webp"
