"""Captions of icons beside their names: aliases and tags, and which icons are logos."""

import re
from collections import Counter
from collections.abc import Iterable

from grr_coca_icons.icon_names import STYLES, Styles, caption_of, without_styles

MAX_FURTHER_WORDS = 5
"""Most words of a further caption. Longer aliases are paths of categories."""

PREFIXES = (["bx"], ["bxs"], ["fa"], ["mdi"])
"""Names of sets at the beginning of an alias, which a caption leaves out."""

BRANDED = frozenset({"brand", "brands", "logo", "logos", "logotype", "sc", "ibm"})
"""Words that begin or end the name of a logo."""

_NO_BRANDS = """
line c signal meteor flask ghost drone bamboo blender spring periscope buffer discover helm railway go bun stylus
mix ruby meta intercom
"""
NO_BRANDS = frozenset(_NO_BRANDS.split())
"""Words that are also names of brands. Icons of these names show the thing more often than the logo."""


ANY_STYLES = Styles(STYLES | {"fill", "line", "baseline", "round", "sharp"})
"""Words of drawing style of aliases, which may come from any set."""


def further_caption(words: str) -> str | None:
    """Return an alias or a tag as a further caption; None if it is too long, not ASCII, or has no letter."""
    parts = [part for part in re.split(r"[-_\s]+", words.strip().lower()) if part]
    parts = without_styles(parts[1:] if parts[:1] in PREFIXES and len(parts) > 1 else parts, ANY_STYLES)
    text = " ".join(parts)
    says = text.isascii() and any(letter.isalpha() for letter in text)
    return text if says and len(parts) <= MAX_FURTHER_WORDS else None


def is_logo(name: str, caption: str, brands: frozenset[str]) -> bool:
    """Return whether an icon shows the logo of a company or product, by its name."""
    words = name.lower().split("-")
    return words[0] in BRANDED or words[-1] in BRANDED or caption.removeprefix("social ") in brands


def brand_captions(logo_sets: Iterable[Iterable[str]]) -> frozenset[str]:
    """Captions that mean a logo: at least three sets of logos have them, so no everyday word of one brand alone."""
    counts = Counter(caption for names in logo_sets for caption in {caption_of(name, Styles()) for name in names})
    return frozenset(caption for caption, count in counts.items() if count >= 3) - NO_BRANDS
