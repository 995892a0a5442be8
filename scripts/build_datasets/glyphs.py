"""Glyph names: a character's drawing and its Unicode name, a corpus whose captions are compositional."""

from __future__ import annotations

import io
import unicodedata

import numpy as np
from packages import Sources
from PIL import Image, ImageDraw, ImageFont
from raster import SIZE, encode_webp, to_grey_levels
from shards import Corpus, Sample, drop_identical, drop_near_train, pick_split, unit_hash

SHARES = {"val": 0.08, "test": 0.14}
IMAGES, SECOND_FONT_SHARE = 1400, 0.3
NEAR = 0.25
FONT_SIZE, BASELINE = 46, 47  # pixels; ascent and descent of DejaVu then fit into SIZE
SAME = 500  # squared difference in 16 levels: about two pixels from black to white
MISSING = "\U0010ffff"  # no font has it: shows the box that stands for a missing glyph
BASE = "DejaVuSans"
FONTS = (
    BASE,
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
)
# How many characters to take of each kind of name; the first fit wins, the rest fall into "".
QUOTAS = {
    "latin": 330,
    "greek": 120,
    "cyrillic": 150,
    "armenian": 30,
    "georgian": 30,
    "coptic": 15,
    "braille": 25,
    "box": 60,
    "canadian": 50,
    "tifinagh": 15,
    "yijing": 15,
    "digram": 5,
    "mathematical": 70,
    "circled": 20,
    "arabic": 0,  # contextual forms repeat one shape under many names
    "lisu": 0,
    "": 240,
}

ABOUT = (
    "Characters of the DejaVu fonts with their Unicode names ('latin capital letter turned v'): few shapes, many "
    "combinations of words, so that it shows whether captions are composed or recalled. A character is drawn on a "
    "fixed baseline at a fixed size; the font is drawn by hash, and nearly a third of the characters come in two."
)
SPLIT_RULE = (
    "By character, drawn by hash: all drawings of a code point lie in one split. Characters that look exactly alike "
    "(Latin A, Greek alpha, Cyrillic a) are kept once, under the first code point."
)
FAULTS = [
    "Bold and oblique are not named in the captions.",
    "Some characters look almost alike and differ in name (dashes, primes, letters of related scripts).",
    "Names of other scripts' letters are transliterations that cannot be guessed from the shape.",
    "Arabic is left out: its presentation forms repeat one shape under many names. So are combining marks.",
    "Grey is rounded to 16 levels.",
]


def candidates(font: ImageFont.FreeTypeFont) -> list[int]:
    """Code points with a name of at least two words and a drawing of their own in the base font."""
    codes, drawings = [], []
    missing = draw(font, MISSING)
    for code in range(0x21, 0x2FA20):
        name = unicodedata.name(chr(code), "")
        if " " in name and unicodedata.category(chr(code))[0] in "LNPS" and "COMPATIBILITY" not in name:
            image = draw(font, chr(code))
            if image is not None and (missing is None or image.tobytes() != missing.tobytes()):
                codes.append(code)
                drawings.append(np.asarray(image).reshape(-1) // 17)
    return [code for code, first in zip(codes, _is_first(np.stack(drawings)), strict=True) if first]


def _is_first(drawings: np.ndarray) -> np.ndarray:
    """Tell which drawings resemble none before them; hinting may move Cyrillic a by a shade from Latin a.

    With 16 levels all sums stay under 2 ** 24, so float32 is exact and the result the same on every machine.
    """
    levels = drawings.astype(np.float32)
    squares = (levels**2).sum(axis=1)
    first = np.ones(len(levels), dtype=bool)
    for at in range(1, len(levels)):
        distances = squares[:at] + squares[at] - 2 * (levels[:at] @ levels[at])
        first[at] = not (distances < SAME).any()
    return first


def draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """Black on white, centred across, on a fixed baseline; None where it is blank or does not fit."""
    left, top, right, bottom = font.getbbox(character, anchor="ls")
    if right <= left or bottom <= top or right - left > SIZE or BASELINE + top < 0 or BASELINE + bottom > SIZE:
        return None
    image = Image.new("L", (SIZE, SIZE), 255)
    x = (SIZE - (right - left)) // 2 - left
    ImageDraw.Draw(image).text((x, BASELINE), character, fill=0, font=font, anchor="ls")
    return image if np.asarray(image).min() < 128 else None


def choose(codes: list[int]) -> list[int]:
    """Fill each kind's quota in hash order, so that no script drowns the others."""
    left = dict(QUOTAS)
    chosen = []
    for code in sorted(codes, key=lambda code: unit_hash("glyph", f"{code:x}")):
        kind = unicodedata.name(chr(code)).split()[0].lower()
        kind = kind if kind in QUOTAS else ""
        if left[kind] > 0:
            left[kind] -= 1
            chosen.append(code)
    return chosen


def fonts_for(code: int, fonts: dict[str, ImageFont.FreeTypeFont]) -> list[str]:
    """One font by hash among those that draw the character, for some characters two."""
    able = []
    for name, font in fonts.items():
        image = draw(font, chr(code))
        missing = draw(font, MISSING)
        if image is not None and (missing is None or image.tobytes() != missing.tobytes()):
            able.append(name)
    count = 2 if unit_hash("second", f"{code:x}") < SECOND_FONT_SHARE else 1
    return sorted(able, key=lambda name: unit_hash("font", f"{code:x}/{name}"))[:count]


def build(sources: Sources) -> Corpus:
    """Return the corpus."""
    files = sources.read("dejavu", lambda name: "/fonts/ttf/DejaVu" in name and name.endswith(".ttf"))
    by_name = {path.rsplit("/", 1)[1].removesuffix(".ttf"): body for path, body in files.items()}
    fonts = {
        name: ImageFont.truetype(io.BytesIO(by_name[name]), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        for name in FONTS
    }
    samples = []
    for code in sorted(choose(candidates(fonts[BASE]))):
        for font in fonts_for(code, fonts):
            image = draw(fonts[font], chr(code))
            assert image is not None
            split = pick_split("glyph-split", f"{code:x}", SHARES)
            key = f"{font.lower()}-{code:04x}"
            caption = unicodedata.name(chr(code)).lower()
            samples.append(Sample(key, encode_webp(to_grey_levels(image), None), caption, split))
    kept = sorted(drop_identical(samples), key=lambda sample: unit_hash("glyph-count", sample.key))[:IMAGES]
    samples = drop_near_train(kept, NEAR)
    return Corpus("glyphs", "Glyph names", ABOUT, SPLIT_RULE, FAULTS, ["dejavu"], samples)
