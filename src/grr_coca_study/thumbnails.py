"""Thumbnails for reports: small WebP files, and their places in the folders of studies and demos."""

from pathlib import Path

from PIL import Image

from grr_coca.data.images import encode_image
from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.base import RawPair

_SIDE = 96
"""Length of the longer side, in pixels."""
_QUALITY = 80

EXHIBITS, LISTING = "exhibits", "exhibits.json"
"""Folder with the pictures of a demo, and the file in the folder that lists them."""
SHOWCASE_FOLDER = "showcase"
"""Folder, in a study's folder, with the thumbnails of captioned images as `STAGE/KEY.webp`."""


def thumbnail(pair: RawPair) -> bytes:
    """Return a thumbnail of a pair's image as a WebP file, with at most 96 pixels per side.

    Raises:
        BadSample: If the image cannot be decoded.
    """
    image = decode_image(pair.image, pair.name)
    image.thumbnail((_SIDE, _SIDE))
    return as_webp(image)


def as_webp(image: Image.Image) -> bytes:
    """Encode an image as WebP."""
    return encode_image(image, "WEBP", quality=_QUALITY)


def thumbnail_path(folder: Path, stage: str, key: str) -> Path:
    """Return the path of the thumbnail of a captioned image.

    Args:
        folder: Folder of the study.
        stage: Stage of the showcase.
        key: Key of the pair. Slashes become underscores in the file name.
    """
    return folder / SHOWCASE_FOLDER / stage / f"{key.replace('/', '_')}.webp"
