"""Icon fonts (TTF, OTF, WOFF, WOFF2): each named glyph becomes an SVG document.

The name of an icon is the ligature used on a page (Material Icons), or else the glyph name. An icon with neither is
named by its code point if this is for private use, such as `u-e001`. Other glyphs, such as letters, are skipped.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grr_coca.common.errors import UserError, escape_control_chars, first_line, require_extra
from grr_coca.common.files import read_errors
from grr_coca_icons.sources.icon_set import MAX_SVG, Icon, IconSet, svg_document

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

SUFFIXES = frozenset({".ttf", ".otf", ".woff", ".woff2"})
_MAX_BYTES = 2**25
_MAX_UNPACKED = 2**27
"""Maximum sizes of a font in bytes: on disk, and unpacked."""

_NO_NAME = re.compile(
    r"\.notdef|\.null|nonmarkingreturn|(?:uni|u)[0-9a-fA-F]{4,6}|(?:glyph|gid|cid|g)_?\d+|space|nbspace|CR"
)
"""Glyph names that do not describe an image."""
_LIGATURE = re.compile(r"[a-z0-9_]{2,}")


def read_font(path: Path) -> IconSet:
    """Return the icons of a font, in the order of its glyphs.

    Raises:
        UserError: If fonttools is not installed, or the file cannot be read, is too large, is not a font, or has no
            icons.
    """
    require_extra("icons", f"{path}: an icon font")
    _require_size(path)
    from fontTools.ttLib import TTFont  # lazy import, because it needs an extra

    try:
        with path.open("rb") as file, TTFont(file, lazy=True, fontNumber=0) as font:
            icons = list(_icons(font))
            title, licence, author = (_name_record(font, number) for number in (4, 13, 9))
    except Exception as error:  # a corrupt font may raise nearly any type of error
        raise UserError(
            f"{path}: corrupt, or not a font ({first_line(error)}); pass a TTF, OTF, WOFF or WOFF2 file"
        ) from error
    if not icons:
        raise UserError(f"{path}: has no glyph with a drawing and a name or code point; use a font of icons")
    return IconSet(prefix=path.stem, icons=icons, title=title, licence=licence[:100], author=author)


def _require_size(path: Path) -> None:
    """Check the size of a font, and its declared unpacked size, which unpacking never exceeds.

    Raises:
        UserError: If a size exceeds its limit, or the file cannot be read.
    """
    with read_errors(path), path.open("rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(24)
    unpacked = int.from_bytes(head[16:20], "big") if head[:4] in (b"wOFF", b"wOF2") else 0
    for found, limit, state in ((size, _MAX_BYTES, ""), (unpacked, _MAX_UNPACKED, " unpacked")):
        if found > limit:
            raise UserError(
                f"{path}: too large for an icon font ({found:,} bytes{state}, limit {limit:,}); remove glyphs from it"
            )


def _name_record(font: "TTFont", number: int) -> str:
    record = font["name"].getDebugName(number) if "name" in font else None
    return escape_control_chars(record.strip()) if record else ""


def _icons(font: "TTFont") -> Iterator[Icon]:
    from fontTools.pens.boundsPen import BoundsPen
    from fontTools.pens.svgPathPen import SVGPathPen
    from fontTools.pens.transformPen import TransformPen

    glyphs = font.getGlyphSet()
    codes: dict[str, int] = {}
    for code, glyph in (font.getBestCmap() or {}).items():
        codes.setdefault(glyph, code)
    ligatures = _ligatures(font, codes)
    metrics = font.get("hhea")
    em = font["head"].unitsPerEm
    top, bottom = (metrics.ascent, metrics.descent) if metrics is not None else (em, 0)
    seen: set[str] = set()
    for glyph in font.getGlyphOrder():
        first, *more = _names(glyph, codes, ligatures)
        if not first or first in seen:
            continue
        seen.add(first)
        bounds = BoundsPen(glyphs)
        try:
            glyphs[glyph].draw(bounds)
            if bounds.bounds is None:
                continue  # a glyph without a drawing, such as a space
            left, low, right, high = bounds.bounds
            pen = SVGPathPen(glyphs, ntos=lambda number: f"{number:g}")
            glyphs[glyph].draw(TransformPen(pen, (1, 0, 0, -1, 0, 0)))
            path = pen.getCommands()
        except Exception as error:  # a corrupt glyph does not affect the other glyphs
            yield Icon(first, "", tuple(more), problem=f"corrupt glyph ({first_line(error)})")
            continue
        if len(path) > MAX_SVG:
            yield Icon(first, "", tuple(more), problem=f"has {len(path):,} characters (limit {MAX_SVG:,})")
            continue
        left, right = min(left, 0), max(right, glyphs[glyph].width)
        high, low = max(high, top), min(low, bottom)
        yield Icon(first, svg_document(f'<path d="{path}"/>', left, -high, right - left, high - low), tuple(more))


def _names(glyph: str, codes: dict[str, int], ligatures: dict[str, list[str]]) -> list[str]:
    """Return the names of a glyph, best first, or a single empty name."""
    code = codes.get(glyph)
    own = [] if _NO_NAME.fullmatch(glyph) or (code is not None and code < 0x2000) else [escape_control_chars(glyph)]
    names = list(dict.fromkeys([*ligatures.get(glyph, ()), *own]))
    if not names and code is not None and (0xE000 <= code < 0xF900 or code >= 0xF0000):
        names = [f"u-{code:x}"]
    return names or [""]


def _ligatures(font: "TTFont", codes: dict[str, int]) -> dict[str, list[str]]:
    """Return, for each glyph, the words that the font replaces by this glyph."""
    if "GSUB" not in font:
        return {}
    letters = {glyph: chr(code) for glyph, code in codes.items() if code < 0x80}
    found: dict[str, list[str]] = defaultdict(list)
    lookups = font["GSUB"].table.LookupList
    for table in (table for lookup in (lookups.Lookup if lookups else ()) for table in lookup.SubTable):
        inner: Any = getattr(table, "ExtSubTable", table)
        for first, ligatures in (getattr(inner, "ligatures", None) or {}).items():
            for ligature in ligatures:
                word = "".join(letters.get(part, "?") for part in (first, *ligature.Component))
                if _LIGATURE.fullmatch(word):
                    found[ligature.LigGlyph].append(word)
    return {glyph: sorted(words, key=lambda word: (len(word), word)) for glyph, words in found.items()}
