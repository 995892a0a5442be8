"""Picture files by mutation: of drawings in nine formats and many modes, and of files that many programs wrote."""

import io
import random
from functools import cache
from pathlib import Path

from hostile_pictures import hostile_picture
from PIL import Image

DRAWINGS = Path(__file__).parents[2] / "docs" / "drawings"
WRITTEN = Path(__file__).parents[1] / "core" / "data" / "pictures"
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "F", "CMYK")


@cache
def seed_picture(kind: str, mode: str, side: int) -> bytes:
    """A drawing as a file that is whole."""
    with Image.open(sorted(DRAWINGS.iterdir())[len(kind + mode) % 5]) as image:
        image = image.convert("RGB").resize((side, side))
    image = image.convert("I").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind)
    except (OSError, ValueError, KeyError):  # the format has no such mode
        image.convert("RGB").save(buffer, kind)
    return buffer.getvalue()


@cache
def _written() -> list[bytes]:
    return [path.read_bytes() for path in sorted(WRITTEN.iterdir()) if path.suffix != ".md"]


def picture(made: random.Random) -> bytes:
    """A picture with bytes changed, repeated, cut off or spliced, and sizes that lie; or with too many parts."""
    if made.random() < 0.1:
        return hostile_picture(made)
    if made.random() < 0.3:
        content = bytearray(made.choice(_written()))
    else:
        content = bytearray(seed_picture(made.choice(_FORMATS), made.choice(_MODES), made.choice([16, 64, 300])))
    for _ in range(made.choice([0, 1, 2, 8, 60])):
        place, kind = made.randrange(len(content)), made.randrange(6)
        if kind < 3:
            content[place] = made.choice([0, 255, 127, made.randrange(256)])
        elif kind == 3:
            content[place : place + 4] = made.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
        elif kind == 4:
            content[place:place] = content[place : place + made.randrange(1, 200)]
        else:
            del content[place : place + made.randrange(1, 50)]
        if not content:
            return b""
    if made.random() < 0.1:
        other = seed_picture(made.choice(_FORMATS), "RGB", 64)
        content += other[made.randrange(len(other)) :]
    return bytes(content[: made.choice([len(content), made.randrange(len(content) + 1)])])
