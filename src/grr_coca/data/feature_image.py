"""Encode image features as an image, so that all code for images also accepts features.

The image is a square whose pixels contain, in raster order: `MAGIC`, the digest of the encoder, the number of features
D, the features in half precision, and zeros. Such a square cannot be confused with an ordinary image, because `MAGIC`
has 72 bits. The features are the mean token of the original image. If a folder of features contains all tokens of the
original image, the SHA-256 of that image, by which the folder finds its tokens, comes between the features and the
zeros.
"""

import io
import math
import struct
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np  # lazy import, because subprocesses do not need it

HEADER = "features.json"
"""Name of the file that describes a feature folder."""
MAGIC = b"\x93GRRCOCA\n"
"""Marker of features in the first three pixels."""
_HEAD = struct.Struct("<9s16sI")
_DIGEST_BYTES = 32
_PIXEL = 3


def feature_side(num_features: int, *, has_tokens: bool = False) -> int:
    """Return the minimum side in pixels of a square with the given number of features.

    Args:
        num_features: Number of features, D.
        has_tokens: Whether the features are followed by the digest of an image whose tokens are stored.
    """
    return math.ceil(math.sqrt((_HEAD.size + 2 * num_features + _DIGEST_BYTES * has_tokens) / _PIXEL))


def feature_image(features: "np.ndarray", digest: str, image_digest: bytes = b"") -> bytes:
    """Return features as a PNG file.

    Args:
        features: Features of an image, D.
        digest: Digest of the encoder that computed the features, 32 hexadecimal digits.
        image_digest: SHA-256 by which all tokens of the image are found. Empty if the tokens are not stored.
    """
    side = feature_side(len(features), has_tokens=bool(image_digest))
    content = _HEAD.pack(MAGIC, bytes.fromhex(digest), len(features)) + features.astype("<f2").tobytes() + image_digest
    file = io.BytesIO()
    image = Image.frombytes("RGB", (side, side), content.ljust(_PIXEL * side * side, b"\0"))
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def encoder_of_image(image: Image.Image) -> str | None:
    """Return the digest of the encoder whose features an RGB image contains, or None for an ordinary image."""
    if image.width != image.height or image.width < feature_side(1):
        return None
    if image.crop((0, 0, len(MAGIC) // _PIXEL, 1)).tobytes() != MAGIC:
        return None
    rows = -(-_HEAD.size // (_PIXEL * image.width))
    head = image.crop((0, 0, image.width, rows)).tobytes()
    return head[len(MAGIC) : len(MAGIC) + 16].hex()


def enlarge_square(image: Image.Image, side: int) -> Image.Image:
    """Return a square with sides of `side` pixels and the same features.

    Raises:
        ValueError: If the features do not fit into a square of this size.
    """
    content = image.tobytes()
    used = _HEAD.size + 2 * _HEAD.unpack_from(content)[2] + _DIGEST_BYTES * (tokens_digest(content) is not None)
    size = _PIXEL * side * side
    if used > min(size, len(content)):
        raise ValueError("the features do not fit into the square")
    return Image.frombytes("RGB", (side, side), content[:used].ljust(size, b"\0"))


def tokens_digest(content: bytes) -> bytes | None:
    """Return the digest by which all tokens of an image are found, or None if the square contains no such digest.

    Args:
        content: Pixels of the square, in raster order.
    """
    start = _HEAD.size + 2 * _HEAD.unpack_from(content)[2]
    digest = content[start : start + _DIGEST_BYTES]
    return digest if len(digest) == _DIGEST_BYTES and any(digest) else None


def features_of_pixels(pixels: "np.ndarray") -> "np.ndarray | None":
    """Return the features that a square of pixels contains, D in fp32, or None for an ordinary image.

    Args:
        pixels: Pixels of the square, S S 3.
    """
    import numpy as np

    content = pixels.tobytes()
    if not content.startswith(MAGIC):
        return None
    count = _HEAD.unpack_from(content)[2]
    return np.frombuffer(content, "<f2", count, _HEAD.size).astype(np.float32)
