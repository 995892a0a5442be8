"""Thumbnails on a terminal that says that it can show them, and on no other."""

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from PIL import Image

from grr_coca.data.image_files import Span
from grr_coca.data.images import decode_image
from grr_coca.errors import UserError

Kind = Literal["kitty", "iterm", "sixel", "blocks"]
SIDE = 96
"""Pixels of a thumbnail."""
ROWS = 5
"""Lines of text that a picture of a terminal with graphics takes."""
BLOCK_COLUMNS = 20
CHUNK = 4096
"""Bytes that kitty takes at once."""
SIXEL_TERMINALS = ("foot", "mlterm", "yaft", "contour")


def thumbnail_kind(environment: Mapping[str, str] | None = None, is_terminal: bool | None = None) -> Kind | None:
    """How this terminal shows pictures, as far as its environment tells; None where it does not tell.

    Args:
        environment: the variables of the process, if None.
        is_terminal: whether somebody sees the output; None: whether standard output is a terminal.
    """
    env = os.environ if environment is None else environment
    if not (sys.stdout.isatty() if is_terminal is None else is_terminal) or "TMUX" in env:
        return None
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "")
    if "kitty" in term or "KITTY_WINDOW_ID" in env or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or env.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    if "sixel" in term or term.startswith(SIXEL_TERMINALS):
        return "sixel"
    has_colours = env.get("COLORTERM", "") in ("truecolor", "24bit")
    is_utf8 = any("utf" in env.get(name, "").lower() for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return "blocks" if has_colours and is_utf8 and "NO_COLOR" not in env else None


def thumbnail_lines(span: Span, name: str, kind: Kind) -> Iterator[str]:
    """The lines that show a picture; none for one that cannot be read any more."""
    try:
        image = decode_image(span.read(), name)
    except UserError:
        return
    image.thumbnail((SIDE, SIDE))
    if kind == "blocks":
        yield from _blocks(image)
    else:
        yield {"kitty": _kitty, "iterm": _iterm, "sixel": _sixel}[kind](image)


def _kitty(image: Image.Image) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol/"""
    data = base64.b64encode(_png(image)).decode()
    parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    keys = [f"a=T,f=100,r={ROWS}," if number == 0 else "" for number in range(len(parts))]
    more = [int(number < len(parts) - 1) for number in range(len(parts))]
    return "".join(f"\x1b_G{key}m={m};{part}\x1b\\" for key, m, part in zip(keys, more, parts, strict=True))


def _iterm(image: Image.Image) -> str:
    """https://iterm2.com/documentation-images.html"""
    png = _png(image)
    return f"\x1b]1337;File=inline=1;size={len(png)};height={ROWS}:{base64.b64encode(png).decode()}\x07"


def _sixel(image: Image.Image) -> str:
    """https://vt100.net/docs/vt3xx-gp/chapter14.html: bands of six rows; in each, every colour by itself."""
    indexed = image.quantize(64)
    palette = np.array(indexed.getpalette()).reshape(-1, 3) * 100 // 255
    pixels = np.asarray(indexed)
    pixels = np.pad(pixels, ((0, -len(pixels) % 6), (0, 0)), constant_values=255)
    out = ["\x1bPq"] + [f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate(palette)]
    weights = 1 << np.arange(6)[:, None]
    for band in pixels.reshape(-1, 6, pixels.shape[1]):
        for colour in np.unique(band[band < len(palette)]):
            sixels = ((band == colour) * weights).sum(axis=0)
            out.append(f"#{colour}" + "".join(chr(63 + int(bits)) for bits in sixels) + "$")
        out.append("-")
    return "".join([*out, "\x1b\\"])


def _blocks(image: Image.Image) -> Iterator[str]:
    """Two pixels a character: the upper half block in the colour of the upper one, over the colour of the lower one."""
    width = min(BLOCK_COLUMNS, image.width)
    height = max(2, round(image.height * width / image.width / 2) * 2)
    pixels = np.asarray(image.resize((width, height)))
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (f"\x1b[38;2;{r};{g};{b};48;2;{s};{h};{c}m▀" for (r, g, b), (s, h, c) in zip(upper, lower, strict=True))
        yield "     " + "".join(cells) + "\x1b[0m"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
