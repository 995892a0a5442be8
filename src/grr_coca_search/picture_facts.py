"""Extract the data that an index needs from an image file: size, hashes and metadata. Subprocesses run this module.

It does not import NumPy, without which subprocesses start in half the time.
"""

from contextlib import suppress
from datetime import datetime

from PIL import Image

from grr_coca.data.decoding import Answer, square_of
from grr_coca.data.images import decode_in_process, has_more_frames
from grr_coca.data.preprocess import Preprocess
from grr_coca_search.photo import read_image_metadata

datetime.strptime("2026", "%Y")  # makes `strptime` import its modules now, because files cannot be opened later
with suppress(ImportError):  # without this package, Pillow does not read XMP
    import defusedxml.ElementTree  # noqa: F401


def described(data: bytes, name: str, *, preprocess: Preprocess | None = None, renderer: str | None = None) -> Answer:
    """Return facts about an image, and the pixels of the model's input square, S S 3, as bytes.

    The facts are the size, whether the file has more frames or pages (`more`), the hashes, and the metadata (`found`).

    Args:
        data: Bytes of the image file.
        name: Name of the file in messages.
        preprocess: Preprocessing of the model. If this is None, the returned pixels are empty.
        renderer: Module that renders a drawing; see `decode_in_process`.

    Raises:
        BadSample: If the image cannot be decoded.
    """
    if preprocess is None:
        image = decode_in_process(data, name, renderer=renderer)
    else:
        side, opening = preprocess.vector_side, preprocess.opening
        image = decode_in_process(
            data, name, opening, to_srgb=True, is_scaled=True, vector_side=side, renderer=renderer
        )
    facts = {
        "size": image.size,
        "more": has_more_frames(image),
        "phash": perceptual_hash(image),
        "look": compute_pixel_signature(image).hex(),
        "found": read_image_metadata(data, name),
    }
    return facts, b"" if preprocess is None else square_of(image, name, preprocess).tobytes()


# --- Compact descriptions of an image for finding near-duplicates. Scaling and compressing an image changes them little

_SIDE = 16
"""Side length, in pixels, of the pixel signature, which is the small copy by which images are compared."""

_CELLS = 8
_STEP = 12
"""Difference in brightness between neighboring cells, on a scale from 0 to 255, above which a bit is set. It is not 0,
so that flat areas have the same bits in all copies."""


def perceptual_hash(image: Image.Image) -> int:
    """Return the perceptual hash of an RGB image: 64 bits, as a signed number. Similar images have similar hashes.

    The image is reduced to 8 rows of 9 gray cells. A bit is set if a cell is darker than its right neighbor by more
    than `_STEP`. Scaling and recompressing an image changes few bits: at most 2 in 300 copies of thin icons, whereas up
    to 26 bits of frequency-based hashes changed.
    """
    width = _CELLS + 1
    grey = image.convert("L").resize((width, _CELLS), Image.Resampling.BILINEAR, reducing_gap=4).tobytes()
    bits = 0
    for row in range(0, width * _CELLS, width):
        for cell in range(row, row + _CELLS):
            bits = bits << 1 | (grey[cell + 1] - grey[cell] > _STEP)
    return bits - (bits >> 63 << 64)


_LEVELS = [(value + 8) // 17 for value in range(256)]
_HIGH, _LOW = bytes(level << 4 for level in _LEVELS), bytes(_LEVELS)
"""Tables that map a channel value to its level, which is in the upper (`_HIGH`) or lower (`_LOW`) half of a byte."""


def compute_pixel_signature(image: Image.Image) -> bytes:
    """Return a small copy of an RGB image with 16 levels per channel: 384 bytes, each of which contains two levels."""
    # A filter wider than a pixel reduces the effect of pixel boundaries and of compression.
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=4).tobytes()
    high, low = small[::2].translate(_HIGH), small[1::2].translate(_LOW)
    return (int.from_bytes(high) | int.from_bytes(low)).to_bytes(len(high))
