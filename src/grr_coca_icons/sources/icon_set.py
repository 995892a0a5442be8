"""An icon set: drawings with names, and what the set says of itself. Readers of all sources of icons return one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from grr_coca_icons.icon_names import Styles, style_of, style_words

MAX_SVG = 2**20
"""Maximum number of bytes of the SVG of one icon in a set. The largest of all sets of Iconify has 200 kB."""
_STROKED = re.compile(r"""\sstroke=["'](?!none)""")


@dataclass(frozen=True)
class Icon:
    """One icon of a set.

    `name`: unique in its set, such as `trash-2`; `svg`: a whole SVG document; `aliases`: further names of the same
    drawing; `tags`: words that the set gives it; `problem`: why there is no drawing, empty if there is one.
    """

    name: str
    svg: str
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """The icons of one source.

    `prefix`: the short name of the set, which begins the full names of its icons (`lucide:trash-2`); `package`: name,
    version and checksum of the npm package that it comes from; `retired`: icons that the set has dropped, and that code
    may still use.
    """

    prefix: str
    icons: Sequence[Icon]
    title: str = ""
    author: str = ""
    licence: str = ""
    package: str = ""
    retired: Sequence[Icon] = ()

    def fields(self, icon: Icon) -> dict[str, str]:
        """What is known of an icon, as columns of a table. What is unknown is left out."""
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
    """The style in a name. Without one, `outline` for strokes, and `regular` for shapes, which may be outlines, too."""
    return style_of(name, styles) or ("outline" if _STROKED.search(svg) else "regular")


def svg_document(body: str, left: float, top: float, width: float, height: float) -> str:
    """A whole SVG document of what is inside its outer tag, and its box."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = f'viewBox="{left:.9g} {top:.9g} {width:.9g} {height:.9g}" width="{width:.9g}" height="{height:.9g}"'
    return f"<svg {names} {box}>{body}</svg>"
