"""SVG sprites: one file with a `<symbol id>` for each icon.

A sprite is parsed without entities and external resources. Each symbol becomes a document that includes the definitions
to which it refers.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, tostring

from grr_coca.common.errors import UserError, escape_control_chars
from grr_coca.common.files import read_file_bytes
from grr_coca.data.images import MAX_BYTES
from grr_coca.data.tokenizer import decode_text
from grr_coca_icons.sources.icon_set import MAX_SVG, Icon, IconSet, svg_document

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")]+)")
_MAX_REFERENCES = 200
"""Maximum number of definitions that a symbol may need."""
_DEFAULT_BOX = (0.0, 0.0, 24.0, 24.0)
"""Default view box of a symbol, if neither the symbol nor the sprite has one."""


def read_sprite(path: Path) -> IconSet | None:
    """Return the icons of a sprite, in order, or None if the file is not a sprite.

    A sprite defines symbols, and displays nothing itself. Missing files, and files that are too large for an image,
    also give None, because other readers report them.

    Raises:
        UserError: If the file cannot be read, or contains `symbol` and is invalid XML or declares entities.
    """
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > MAX_BYTES:
        return None  # the image reader will reject the file
    content = read_file_bytes(path)
    if b"symbol" not in content:
        return None
    root = _parse_svg(content, str(path))
    symbols = [element for element in root.iter("symbol") if element.get("id")]
    if not symbols or _has_visible_shapes(root):
        return None
    named = {element.get("id", ""): element for element in root.iter() if element.get("id")}
    icons: dict[str, Icon] = {}
    for symbol in symbols:
        icon = _icon(escape_control_chars(symbol.get("id", "")), symbol, root, named)
        icons.setdefault(icon.name, icon)  # the first of several symbols with one id counts, as in a browser
    return IconSet(prefix=path.stem, icons=list(icons.values()))


_HIDING = frozenset({"symbol", "defs", "title", "desc", "metadata", "style"})
_SHAPES = frozenset({"path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "image", "use"})


def _has_visible_shapes(element: Element) -> bool:
    """Return whether an SVG draws something outside of symbols and definitions."""
    waiting = [element]
    while waiting:
        for inner in waiting.pop():
            if inner.tag in _SHAPES:
                return True
            if inner.tag not in _HIDING:
                waiting.append(inner)
    return False


def _parse_svg(content: bytes, name: str) -> Element:
    from defusedxml import DefusedXmlException  # lazy import, because few images are in a sprite
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(decode_text(content, name))
    except DefusedXmlException as error:
        raise UserError(
            f"{name}: a sprite must not declare entities; export it without them, or "
            "replace each &NAME; with its value and remove the <!DOCTYPE>"
        ) from error
    except (ParseError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: corrupt SVG file ({error}); export the sprite again") from error
    for element in root.iter():  # the documents declare these two namespaces
        element.tag = element.tag.removeprefix(_SVG)
        for key in [key for key in element.attrib if key.startswith(_XLINK)]:
            element.set(f"xlink:{key.removeprefix(_XLINK)}", element.attrib.pop(key))
    return root


def _icon(name: str, symbol: Element, root: Element, named: dict[str, Element]) -> Icon:
    box = _box(symbol) or _box(root) or _DEFAULT_BOX
    if not (box[2] > 0 and box[3] > 0):
        return Icon(name, "", problem="its viewBox is empty")
    # As in a browser, the group inherits presentation attributes from the symbol and its parents.
    group = Element("g", {key: value for key, value in symbol.attrib.items() if key in _PRESENTATION_ATTRIBUTES})
    group.extend(symbol)
    try:
        needed = list(_referenced_elements(group, named))
        body = "".join(tostring(element, encoding="unicode") for element in [*needed, group])
    except (RecursionError, ValueError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        return Icon(name, "", problem=reason)
    if len(body) > MAX_SVG:
        return Icon(name, "", problem=f"has {len(body):,} characters (limit {MAX_SVG:,})")
    return Icon(name, svg_document(body, *box))


_PRESENTATION_ATTRIBUTES = frozenset({
    "fill", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin", "stroke-miterlimit", "stroke-dasharray",
    "fill-rule", "clip-rule", "opacity", "fill-opacity", "stroke-opacity", "color", "style", "transform",
})  # fmt: skip


def _referenced_elements(group: Element, named: dict[str, Element]) -> Iterator[Element]:
    """Yield the elements of the sprite that an icon refers to, directly or indirectly, each in a `<defs>` element.

    Raises:
        ValueError: If there are more than `_MAX_REFERENCES` such elements.
    """
    inside = {element.get("id") for element in group.iter()}
    waiting, seen = [group], set(inside)
    while waiting:
        for reference in _references(waiting.pop()):
            if reference in seen or reference not in named:
                continue
            seen.add(reference)
            if len(seen) - len(inside) > _MAX_REFERENCES:
                raise ValueError(f"refers to more than {_MAX_REFERENCES} other elements")
            waiting.append(named[reference])
            definitions = Element("defs")
            definitions.append(named[reference])
            yield definitions


def _references(element: Element) -> Iterator[str]:
    for inner in element.iter():
        for key, value in inner.attrib.items():
            if key in ("href", "xlink:href"):
                if value.startswith("#"):
                    yield value[1:]
            elif "url(" in value:
                yield from _REFERENCE.findall(value)


def _box(element: Element) -> tuple[float, float, float, float] | None:
    numbers = re.split(r"[\s,]+", (element.get("viewBox") or "").strip())
    if len(numbers) != 4:
        width, height = _length(element.get("width")), _length(element.get("height"))
        return None if width is None or height is None else (0.0, 0.0, width, height)
    try:
        left, top, width, height = map(float, numbers)
    except ValueError:
        return None
    return (left, top, width, height) if all(abs(side) < 1e6 for side in (left, top, width, height)) else None


def _length(text: str | None) -> float | None:
    found = re.fullmatch(r"\s*([0-9.]+)(?:px)?\s*", text or "")
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None
