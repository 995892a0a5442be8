"""Thumbnails on terminals that are known to show images."""

import base64
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import Span
from grr_coca.data.images import decode_image, encoded

Kind = Literal["kitty", "iterm", "sixel", "blocks"]
_SIDE = 96
"""Pixels of a thumbnail's longer side."""
_ROWS = 5
"""Lines of text that a thumbnail takes on a terminal with graphics."""
_BLOCK_COLUMNS = 20
_CHUNK = 4096
"""Maximum bytes of one message to kitty."""
_SIXEL_TERMINALS = ("foot", "mlterm", "yaft", "contour")


def thumbnail_kind(environment: Mapping[str, str] | None = None, is_terminal: bool | None = None) -> Kind | None:
    """The protocol by which this terminal shows images; None if its environment names none.

    Args:
        environment: environment variables; None: those of this process.
        is_terminal: whether the output is a terminal; None: look at standard output.
    """
    env = os.environ if environment is None else environment
    if not (sys.stdout.isatty() if is_terminal is None else is_terminal) or "TMUX" in env:
        return None
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "")
    if "kitty" in term or "KITTY_WINDOW_ID" in env or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or env.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    if "sixel" in term or term.startswith(_SIXEL_TERMINALS):
        return "sixel"
    has_colours = env.get("COLORTERM", "") in ("truecolor", "24bit")
    is_utf8 = any("utf" in env.get(name, "").lower() for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return "blocks" if has_colours and is_utf8 and "NO_COLOR" not in env else None


def thumbnail_lines(span: Span, name: str, kind: Kind) -> Iterator[str]:
    """The lines that show an image; none if it can no longer be read."""
    try:
        image = decode_image(span.read(), name, to_srgb=True)
    except UserError:
        return
    image.thumbnail((_SIDE, _SIDE))
    if kind == "blocks":
        yield from _blocks(image)
    else:
        yield {"kitty": _kitty, "iterm": _iterm, "sixel": _sixel}[kind](image)


def _kitty(image: Image.Image) -> str:
    """Kitty's graphics protocol: https://sw.kovidgoyal.net/kitty/graphics-protocol/"""
    data = base64.b64encode(encoded(image, "PNG")).decode()
    parts = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    keys = [f"a=T,f=100,r={_ROWS}," if number == 0 else "" for number in range(len(parts))]
    more = [int(number < len(parts) - 1) for number in range(len(parts))]
    return "".join(f"\x1b_G{key}m={m};{part}\x1b\\" for key, m, part in zip(keys, more, parts, strict=True))


def _iterm(image: Image.Image) -> str:
    """Images of iTerm2: https://iterm2.com/documentation-images.html"""
    png = encoded(image, "PNG")
    return f"\x1b]1337;File=inline=1;size={len(png)};height={_ROWS}:{base64.b64encode(png).decode()}\x07"


def _sixel(image: Image.Image) -> str:
    """Sixel graphics: bands of six rows, colour after colour; see https://vt100.net/docs/vt3xx-gp/chapter14.html."""
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
    """Half blocks, two pixels per character: the upper in the foreground colour, the lower in the background."""
    width = min(_BLOCK_COLUMNS, image.width)
    height = max(2, round(image.height * width / image.width / 2) * 2)
    pixels = np.asarray(image.resize((width, height)))
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (f"\x1b[38;2;{r};{g};{b};48;2;{s};{h};{c}m▀" for (r, g, b), (s, h, c) in zip(upper, lower, strict=True))
        yield "     " + "".join(cells) + "\x1b[0m"
