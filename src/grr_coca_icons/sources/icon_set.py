"""Icon set: drawings with names, and its metadata. All readers of icon sources return an icon set."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from grr_coca_icons.icon_names import Styles, style_of, style_words

MAX_SVG = 2**20
"""Maximum size, in bytes, of the SVG of an icon in a set. The largest icon in all Iconify sets has 200 kB."""
_STROKED = re.compile(r"""\sstroke=["'](?!none)""")


@dataclass(frozen=True)
class Icon:
    """Icon of a set.

    Attributes:
        name: Name that is unique in its set, such as `trash-2`.
        svg: Complete SVG document.
        aliases: Additional names of the same drawing.
        problem: Reason why the drawing is missing. Empty if it exists.
    """

    name: str
    svg: str
    aliases: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """Icons of one source.

    Attributes:
        prefix: Short name of the set, with which the full names of its icons start (`lucide:trash-2`).
        package: Name, version and checksum of its npm package. Empty if it is not from a downloaded package.
        retired: Icons that the set has dropped, but that code may still use.
    """

    prefix: str
    icons: Sequence[Icon]
    title: str = ""
    author: str = ""
    licence: str = ""
    package: str = ""
    retired: Sequence[Icon] = ()

    def fields(self, icon: Icon) -> dict[str, str]:
        """Return the metadata of an icon as table columns, omitting unknown values."""
        known = {
            "icon": f"{self.prefix}:{icon.name}",
            "set": self.title or self.prefix,
            "style": drawn_style(icon.name, icon.svg, self._style_words),
            "licence": self.licence,
            "author": self.author,
            "aliases": ", ".join(icon.aliases),
            "package": self.package,
        }
        return {name: value for name, value in known.items() if value}

    @cached_property
    def _style_words(self) -> Styles:
        return style_words([icon.name for icon in self.icons], ())


def drawn_style(name: str, svg: str, styles: Styles) -> str:
    """Return the style that a name states.

    If the name states no style, return `outline` for drawings with strokes and `regular` for other drawings, which may
    also look like outlines.
    """
    return style_of(name, styles) or ("outline" if _STROKED.search(svg) else "regular")


def svg_document(body: str, left: float, top: float, width: float, height: float) -> str:
    """Return a complete SVG document with the given body and view box."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = f'viewBox="{left:.9g} {top:.9g} {width:.9g} {height:.9g}" width="{width:.9g}" height="{height:.9g}"'
    return f"<svg {names} {box}>{body}</svg>"
