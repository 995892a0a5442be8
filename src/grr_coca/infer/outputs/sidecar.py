"""Write captions and keywords to XMP files next to images, without changing other content.

An existing file is not parsed and serialized again: the new words are inserted into its bytes, so metadata from
other programs stays identical, byte for byte. The image itself is never opened for writing.

The format is XMP, part 1 of the specification (ISO 16684-1). Captions are stored in `dc:description`, and keywords in
`dc:subject`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from xml.parsers import expat

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_file_bytes, write_bytes_atomic

_DC = "http://purl.org/dc/elements/1.1/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XML_LANG = "http://www.w3.org/XML/1998/namespace lang"
_NEW = (
    "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>\n"
    "<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='grr-coca'>\n"
    f" <rdf:RDF xmlns:rdf='{_RDF}'>\n </rdf:RDF>\n"
    "</x:xmpmeta>\n<?xpacket end='w'?>\n"
)
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_MAX_BYTES = 2**22
_MAX_LEVELS = 100


class XmpError(UserError):
    """Error about an XMP file that cannot be changed safely, and therefore stays unchanged."""


def sidecar_to_write(image: Path, *, is_alone: bool = True) -> Path:
    """Return the path of the XMP file for an image `NAME.jpg`: `NAME.jpg.xmp`, or `NAME.xmp` if only that file exists.

    digiKam, darktable and PhotoPrism read both files; Lightroom and Adobe Bridge read only `NAME.xmp`.

    Args:
        image: Path of the image.
        is_alone: Whether no other image has the same name with a different suffix. If False, `NAME.xmp` is not used,
            because this file may belong to another image.
    """
    own, shared = image.with_name(f"{image.name}.xmp"), image.with_suffix(".xmp")
    return shared if is_alone and not os.path.lexists(own) and shared.is_file() else own


def has_caption(sidecar: Path) -> bool:
    """Return whether an XMP file already has a caption.

    Raises:
        XmpError: If the file exists, but is not an XMP file that can be changed safely.
    """
    return os.path.lexists(sidecar) and _find_offsets(_read(sidecar), sidecar).has_description


def write_sidecar(sidecar: Path, caption: str | None, keywords: Sequence[str] = (), *, overwrite: bool = False) -> None:
    """Write a caption and keywords to an XMP file, which is created if it does not exist.

    Args:
        sidecar: The file.
        caption: The caption. No caption is written if this is None, or has no characters that XML can represent.
        keywords: Keywords to add. Without a caption or keywords, no file is created.
        overwrite: Whether to replace an existing caption. Translations of the caption are always kept.

    Raises:
        XmpError: If the file is a link, or exists but is not an XMP file that can be changed safely. The file stays
            unchanged.
        OSError: If the disk is full or cannot be written to. The file stays unchanged.
    """
    content = _read(sidecar) if os.path.lexists(sidecar) else _NEW.encode()
    changed = _insert_words(content, sidecar, _to_plain_line(caption or "") or None, keywords, overwrite)
    if changed != content:
        write_bytes_atomic(sidecar, changed)


def _read(sidecar: Path) -> bytes:
    if sidecar.is_symlink() or not sidecar.is_file():  # a link may lead to the image itself
        raise XmpError(f"{sidecar}: a link, or not a regular file, so it was not changed; use a regular file")
    if sidecar.stat().st_size > _MAX_BYTES:
        raise XmpError(
            f"{sidecar}: more than {_MAX_BYTES // 2**20} MB, too large for an XMP file; the file was not changed"
        )
    try:
        return read_file_bytes(sidecar)
    except UserError as error:
        raise XmpError(str(error)) from error


def _insert_words(
    content: bytes, sidecar: Path, caption: str | None, keywords: Sequence[str], overwrite: bool
) -> bytes:
    found = _find_offsets(content, sidecar)
    edits: list[tuple[int, int, str]] = []
    properties = ""
    if caption is not None and not found.has_description:
        item = f'<rdf:li xml:lang="x-default">{escape(caption, quote=False)}</rdf:li>'
        properties += _property("description", "Alt", item)
    elif caption is not None and overwrite:
        edits.append(_new_description(found, caption, sidecar))
    missing = [word for word in dict.fromkeys(map(_to_plain_line, keywords)) if word and word not in found.keywords]
    items = "".join(f"<rdf:li>{escape(word, quote=False)}</rdf:li>" for word in missing)
    if missing and found.bag_end is not None:
        # The file may use another prefix for RDF names.
        edits.append((found.bag_end, found.bag_end, items.replace("<rdf:li>", f"<rdf:li xmlns:rdf='{_RDF}'>")))
    elif missing and found.has_subject:
        raise XmpError(f"{sidecar}: the keywords are not in a list that can be extended; the file was not changed")
    elif missing:
        properties += _property("subject", "Bag", items)
    if properties:
        edits.append(_new_properties(found, properties, sidecar))
    for start, end, text in sorted(edits, reverse=True):
        content = content[:start] + text.encode() + content[end:]
    after = _find_offsets(content, sidecar)  # checks that the new text can be found again
    assert caption is None or after.has_description
    assert {*found.keywords, *missing} == set(after.keywords)
    return content


def _new_description(found: "_Offsets", caption: str, sidecar: Path) -> tuple[int, int, str]:
    if found.default is not None:
        return *found.default, escape(caption, quote=False)
    if found.alternatives is not None:
        return (
            found.alternatives,
            found.alternatives,
            f"<rdf:li xmlns:rdf='{_RDF}' xml:lang=\"x-default\">{escape(caption, quote=False)}</rdf:li>",
        )
    raise XmpError(f"{sidecar}: the caption is in a form that cannot be replaced; the file was not changed")


def _new_properties(found: "_Offsets", properties: str, sidecar: Path) -> tuple[int, int, str]:
    if found.description_end is not None:
        return found.description_end, found.description_end, properties
    if found.rdf_end is None:
        raise XmpError(f"{sidecar}: not an XMP file (no rdf:RDF element); the file was not changed")
    described = (
        f"<rdf:Description xmlns:rdf='{_RDF}' rdf:about='{escape(found.about)}'>\n{properties}</rdf:Description>\n"
    )
    return found.rdf_end, found.rdf_end, described


def _property(name: str, kind: str, items: str) -> str:
    spaces = f"xmlns:dc='{_DC}' xmlns:rdf='{_RDF}'"
    return f"  <dc:{name} {spaces}><rdf:{kind}>{items}</rdf:{kind}></dc:{name}>\n"


def _to_plain_line(text: str) -> str:
    """Convert a text to a single line, with only the characters that XML can represent."""
    return " ".join(_NOT_XML.sub(" ", text).split())


# --- Offsets in the bytes


@dataclass(kw_only=True)
class _Offsets:
    """Byte offsets at which an XMP file can be extended. None means that the element is missing.

    Attributes:
        rdf_end, description_end: Offsets before the end tags of `rdf:RDF` and of the first `rdf:Description`.
        about: Subject of the first `rdf:Description`.
        has_description: Whether the file has a caption in any form.
        default: Start and end of the caption in the default language.
        alternatives: Start of the list that contains the caption in each language.
        has_subject: Whether the file has keywords in any form.
        bag_end: Offset before the end tag of the keyword list.
        keywords: Keywords in the file.
    """

    rdf_end: int | None = None
    description_end: int | None = None
    about: str = ""
    has_description: bool = False
    default: tuple[int, int] | None = None
    alternatives: int | None = None
    has_subject: bool = False
    bag_end: int | None = None
    keywords: list[str] = field(default_factory=list)


def _find_offsets(content: bytes, sidecar: Path) -> _Offsets:
    """Find the offsets in an XMP file at which it can be extended.

    Raises:
        XmpError: If the file is not XML in UTF-8, has a DOCTYPE, or has more than 100 levels of elements.
    """
    reader = _Reader(content)
    try:
        content.decode()
        reader.read()
    except (ValueError, expat.ExpatError) as error:
        raise XmpError(f"{sidecar}: not an XMP file that can be changed ({error}); the file was not changed") from error
    return reader.offsets


class _Reader:
    """Parser of the bytes of an XMP file. `read` fills `offsets`, or raises `ValueError` or `expat.ExpatError`."""

    def __init__(self, content: bytes) -> None:
        self.offsets = _Offsets()
        self._content = content
        self._path: list[str] = []
        self._text: list[str] = []
        self._waits_for_content: list[str] | None = None  # path of the element whose content begins at the next event
        self._start_of_item = 0
        self._is_default = False
        self._num_descriptions = 0
        parser = self._parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = False
        parser.StartElementHandler, parser.EndElementHandler = self._begin, self._end
        parser.CharacterDataHandler = self._characters
        for name in ("CommentHandler", "ProcessingInstructionHandler", "StartCdataSectionHandler"):
            setattr(parser, name, lambda *_: self._current_offset())
        parser.StartDoctypeDeclHandler = self._reject_doctype

    def read(self) -> None:
        self._parser.Parse(self._content, True)

    def _reject_doctype(self, *_: object) -> None:
        raise ValueError("DOCTYPE is not allowed")

    def _current_offset(self) -> int:
        """Return the offset of the current event, which is also the start of the content of an element that just began.

        Such a start is recorded if the element is a list of captions or a caption in this list.
        """
        place: int = self._parser.CurrentByteIndex
        waiting, self._waits_for_content = self._waits_for_content, None
        if waiting == _ITEM_OF_DESCRIPTION:
            self._start_of_item = place
        elif waiting == _ALTERNATIVES and self.offsets.alternatives is None:
            self.offsets.alternatives = place
        return place

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self._current_offset()
        if len(self._path) == _MAX_LEVELS:
            raise ValueError(f"more than {_MAX_LEVELS} levels of elements")
        self._path.append(name)
        self._text.clear()
        self._waits_for_content = self._path_in_rdf()
        if name == f"{_RDF} Description" and len(self._path_in_rdf()) == 1:
            self._num_descriptions += 1
            if self._num_descriptions == 1:
                self.offsets.about = attributes.get(f"{_RDF} about", attributes.get("about", ""))
            self.offsets.has_description |= f"{_DC} description" in attributes
            self.offsets.has_subject |= f"{_DC} subject" in attributes
        self.offsets.has_description |= self._path_in_rdf() == _DESCRIPTION
        self.offsets.has_subject |= self._path_in_rdf() == _SUBJECT
        self._is_default = attributes.get(_XML_LANG) == "x-default"

    def _characters(self, text: str) -> None:
        self._current_offset()
        self._text.append(text)

    def _end(self, name: str) -> None:
        is_new = self._waits_for_content is not None
        place, below = self._current_offset(), self._path_in_rdf()
        # not an empty element such as `<rdf:Bag/>`
        is_open = not (is_new and self._content[place - 2 : place] == b"/>")
        if name == f"{_RDF} RDF" and is_open:
            self.offsets.rdf_end = place
        elif below == [f"{_RDF} Description"] and is_open and self._num_descriptions == 1:
            self.offsets.description_end = place
        elif below == _ITEM_OF_DESCRIPTION and self._is_default and is_open:
            self.offsets.default = self._start_of_item, place
        elif below in _LISTS_OF_SUBJECT and is_open:
            self.offsets.bag_end = place
        elif below[:-1] in _LISTS_OF_SUBJECT:
            self.offsets.keywords.append(" ".join("".join(self._text).split()))
        self._path.pop()

    def _path_in_rdf(self) -> list[str]:
        """Return the path below `rdf:RDF`."""
        return self._path[self._path.index(_ROOT) + 1 :] if _ROOT in self._path else []


_ROOT = f"{_RDF} RDF"
_DESCRIPTION = [f"{_RDF} Description", f"{_DC} description"]
_ALTERNATIVES = [*_DESCRIPTION, f"{_RDF} Alt"]
_ITEM_OF_DESCRIPTION = [*_ALTERNATIVES, f"{_RDF} li"]
_SUBJECT = [f"{_RDF} Description", f"{_DC} subject"]
_LISTS_OF_SUBJECT = [[*_SUBJECT, f"{_RDF} {kind}"] for kind in ("Bag", "Seq")]
