"""Review page for matches: one HTML file with each image and its candidates, among which users choose.

Uncertain matches come first. A button saves safe and chosen matches as a map, for `grr-coca match --decided`. Drawings
are shown as images, in which scripts cannot run, and the page loads nothing remote.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from types import MappingProxyType

from grr_coca.common.errors import UserError
from grr_coca.data.images import encode_image
from grr_coca.data.isolated import decode_image
from grr_coca_icons.match.candidates import PictureMatch
from grr_coca_icons.match.picture_set import OpenPictureSet
from grr_coca_icons.svg import is_svg

_SIDE = 96
"""Maximum side, in pixels, of the thumbnail of an image that is not SVG."""
_MAX_SVG = 20_000
"""Maximum size, in bytes, of an SVG drawing on the page. Larger drawings are shown as pixels."""
SURE = 0.5
"""Minimum probability of an equivalent that is accepted without a manual decision."""
_MAX_SHOWN = 10_000
"""Maximum number of target icons for which the page contains all drawings, so that users also see those icons that are
not candidates.
"""


def review_page(
    matches: Sequence[PictureMatch],
    source: OpenPictureSet,
    target: OpenPictureSet,
    title: str,
    uses: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> str:
    """Return the review page as HTML.

    Args:
        matches: Icons of the source with their candidates.
        source: Icons to replace.
        target: Set of the candidates. All its icons can be found by name.
        title: Title of the page.
        uses: Files and lines that use each source icon, by the icon's index.
    """
    drawings: dict[str, int] = {}

    def image_number(side: OpenPictureSet, row: int) -> int:
        return drawings.setdefault(_image(side, row), len(drawings))

    rows = [
        {
            "name": match.name,
            "image": image_number(source, match.row),
            "chosen": match.best.name if match.best else None,
            "decided": match.is_decided,
            "safe": _is_safe(match),
            "used": list(uses.get(match.row, ())),
            "matches": [
                {
                    "name": one.name,
                    "image": image_number(target, one.row),
                    "probability": one.probability,
                    "same_name": one.same_name,
                }
                for one in match.nearest or match.candidates
            ],
        }
        for match in sorted(matches, key=_order)
    ]
    licences = sorted({str(fields["licence"]) for fields in target.fields if fields.get("licence")})
    are_shown = len(target.set) <= _MAX_SHOWN
    others = [
        {
            "name": name,
            "words": " ".join((name, *further)).lower(),
            "image": image_number(target, row) if are_shown else None,
        }
        for row, (name, further) in enumerate(zip(target.set.names, target.further_names, strict=True))
    ]
    safe = sum(map(_is_safe, matches))
    content = {"rows": rows, "others": others, "images": list(drawings)}
    # `<` is escaped, so that the data cannot end the script element that contains it.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(resources.files("grr_coca_icons.match").joinpath("review.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        safe=f"{safe:,}",
        open=f"{len(rows) - safe:,}",
        licences=html.escape(f" Licence of the candidates: {', '.join(licences[:6])}." if licences else ""),
        data=data,
    )


def _is_safe(match: PictureMatch) -> bool:
    return match.is_decided or (match.best is not None and (match.best.probability or 0) >= SURE)


def _order(match: PictureMatch) -> tuple[bool, float, str]:
    """Return a sort key: the probability of the nearest candidate, then the name. Decided matches come last."""
    first = match.nearest[0].probability if match.nearest else None
    return match.is_decided, 0.0 if first is None else first, match.name


def _image(side: OpenPictureSet, row: int) -> str:
    try:
        content = side.read(row)
        if is_svg(content) and len(content) <= _MAX_SVG:
            return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
        image = decode_image(content, side.set.names[row], to_srgb=True)
    except UserError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    return f"data:image/webp;base64,{base64.b64encode(encode_image(image, 'WEBP', quality=80)).decode()}"
