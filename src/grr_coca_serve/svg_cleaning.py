"""Clean SVG files for the page: remove scripts and external references, and set the color of `currentColor`."""

import re
from xml.etree import ElementTree

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_MAX_BYTES = 2**20
_ACTIVE = frozenset({"script", "foreignObject", "a", "animate", "animateMotion", "animateTransform", "set", "handler"})
"""Elements that run code, embed documents, contain links, or change attributes of other elements."""
_EMBEDDED = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,", re.IGNORECASE)
_IMPORT = re.compile(r"@import[^;]*;?", re.IGNORECASE)
_EXTERNAL_REFERENCE = re.compile(r"""url\(\s*(?!['"]?\s*#)[^)]*\)|expression\s*\(|javascript:""", re.IGNORECASE)
"""Parts of style values that may load other resources or run code."""
_DOCTYPE = re.compile(rb"<!DOCTYPE[^>\[]*>", re.IGNORECASE)
_INK = re.compile(r"[0-9a-f]{6}")

HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
}
"""Headers for an SVG file, which prevent it from running or loading anything, even if it is opened directly."""

ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def clean_svg(data: bytes, ink: str | None = None) -> bytes | None:
    """Return an SVG document without the parts that could run code or load other resources.

    Return None if the document cannot be cleaned.

    Args:
        data: Content of the file.
        ink: Color for `currentColor`, as six hexadecimal digits.
    """
    data = _DOCTYPE.sub(b"", data)
    if len(data) > _MAX_BYTES or b"<!ENTITY" in data or b"<!DOCTYPE" in data.upper():
        return None
    try:
        root = ElementTree.fromstring(data)
        if root.tag != f"{{{_SVG}}}svg":
            return None
        _clean(root)
        if ink is not None and _INK.fullmatch(ink):
            root.set("color", f"#{ink}")
        return ElementTree.tostring(root)
    except (ElementTree.ParseError, RecursionError, ValueError, LookupError):
        return None


def _clean(root: ElementTree.Element) -> None:
    for element in root.iter():
        for child in [child for child in element if not _is_allowed(child)]:
            element.remove(child)
        for name, value in list(element.attrib.items()):
            cleaned = _clean_value(name, value)
            if cleaned is None:
                del element.attrib[name]
            elif cleaned != value:
                element.set(name, cleaned)
        if element.tag == f"{{{_SVG}}}style" and element.text:
            element.text = _EXTERNAL_REFERENCE.sub("none", _IMPORT.sub("", element.text))


def _is_allowed(element: ElementTree.Element) -> bool:
    # The tag of a comment or a processing instruction is a function.
    name = element.tag if isinstance(element.tag, str) else ""
    return name.startswith(f"{{{_SVG}}}") and name.removeprefix(f"{{{_SVG}}}") not in _ACTIVE


def _clean_value(name: str, value: str) -> str | None:
    """Return the permitted value of an attribute, or None if the attribute must be removed."""
    plain = name.rpartition("}")[2].lower()
    if plain.startswith("on") or (name.startswith("{") and not name.startswith(f"{{{_XLINK}}}")):
        return None
    if plain in ("href", "src"):
        return value if value.strip().startswith("#") or _EMBEDDED.match(value.strip()) else None
    return _EXTERNAL_REFERENCE.sub("none", value)
