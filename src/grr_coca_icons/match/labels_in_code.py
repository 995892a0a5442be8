"""Labels of images in HTML, JSX and Markdown.

In code, a label is the `alt`, `aria-label` or `title` of an image, of inline SVG or of an icon from a known set, or of
the parent element, such as a button. An image with `alt=""` needs no label, and is skipped.
"""

import html
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grr_coca.data.walk import has_image_suffix
from grr_coca_icons.match.used_icons import Use, code_files, components_in, read_code, uses_in

CODE = frozenset({"html", "htm", "jsx", "tsx", "js", "ts", "vue", "svelte", "astro", "md", "mdx", "erb", "php"})
"""Suffixes of files from which labels are read."""
_ROOTS = ("", "public", "static", "src", "assets", "app/assets", "docs", "www")
"""Folders that may be the root of a site's paths."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """Label of an image in code.

    Attributes:
        text: The label, without HTML entities and with single spaces.
        file, line: Location of the label.
        image: Path of the image file. At most one of `image`, `svg` and `icon` is set. None of them is set if the image
            is a file outside the allowed folders.
        svg: Inline SVG.
        icon: Use of an icon from a known set.
    """

    text: str
    file: str
    line: int
    image: Path | None = None
    svg: str | None = None
    icon: Use | None = None


def labels_in_code(root: Path, exclude: Sequence[str] = (), folders: Sequence[Path] = ()) -> Iterator[Label]:
    """Yield the labels of a code file, or of all code files below a folder.

    Args:
        root: Code file, or folder.
        exclude: Patterns of code files to skip, as in .gitignore.
        folders: Folders whose images may be opened, in addition to the folder of `root` and its git repository.

    Raises:
        UserError: If a file cannot be read.
    """
    site = root if root.is_dir() else root.parent
    allowed = [_repository(site.resolve()), *(folder.resolve() for folder in folders)]
    for path in code_files(root, CODE, exclude):
        yield from _labels_of(read_code(path), path, site, allowed)


def _repository(folder: Path) -> Path:
    """Return the root of the git repository that contains a folder, or else the folder itself."""
    return next((one for one in (folder, *folder.parents) if os.path.lexists(one / ".git")), folder)


_ATTRIBUTES = r"(?:[^<>\"'{}]|\"[^\"]*\"|'[^']*'|\{[^{}]*\})*"
_LABEL = re.compile(  # not `:title`, whose value is a Vue expression
    r"(?<![\w:.@-])(?:aria-label|alt|title)=(?:\"([^\"{}]*)\"|'([^'{}]*)'|\{\s*[\"'`]([^\"'`{}$]*)[\"'`]\s*\})"
)
_SOURCE = re.compile(r"(?<![\w-])src=(?:\"([^\"{}]+)\"|'([^'{}]+)'|\{\s*[\"']([^\"'{}]+)[\"']\s*\})")
_IMAGE = re.compile(rf"<(?:img|Image)\b({_ATTRIBUTES})>", re.IGNORECASE)
_MARKDOWN = re.compile(r"!\[([^\]\n]+)\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_SVG = re.compile(r"<svg\b[^<>]*>.*?</svg>", re.DOTALL)
_TITLE = re.compile(r"<title[^<>]*>([^<>]+)</title>")
_ICON = re.compile(rf"<([A-Z]\w*|i|span|iconify-icon|Icon)\b({_ATTRIBUTES})/?>")
_EMPTY = "area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr"
"""Void elements of HTML."""
_AROUND = re.compile(rf"<(?!(?:{_EMPTY})\b)[\w.]+\b({_ATTRIBUTES})(?<!/)>\s*$")


def _labels_of(text: str, path: Path, root: Path, allowed: Sequence[Path]) -> Iterator[Label]:
    """Yield the labels in the text of a file.

    Args:
        text: Text of the file.
        path: Path of the file, to which images are relative.
        root: Root of the site.
        allowed: Folders, without links, whose images may be opened.
    """

    def line_of(offset: int) -> int:
        return text.count("\n", 0, offset) + 1

    images = [
        (match.start(), _label(match[1]), _first_group(_SOURCE.search(match[1]))) for match in _IMAGE.finditer(text)
    ]
    if path.suffix.lower() in (".md", ".mdx"):
        images += [(match.start(), _clean(match[1]), match[2]) for match in _MARKDOWN.finditer(text)]
    for offset, label, source in images:
        image = _image_file(source, path, root, allowed) if label else None
        if image:
            inside = image if _is_inside(image, allowed) else None
            yield Label(text=label, file=str(path), line=line_of(offset), image=inside)
    for match in _SVG.finditer(text):
        opening, title = match[0].partition(">")[0], _TITLE.search(match[0])
        label = _label(opening) or (_clean(title[1]) if title else "") or _parent_label(text, match.start())
        if label and "{" not in match[0] and "<use" not in match[0]:
            yield Label(text=label, file=str(path), line=line_of(match.start()), svg=_as_document(match[0]))
    imported = components_in(text, str(path))
    for match in _ICON.finditer(text):
        label = _label(match[2]) or _parent_label(text, match.start())
        if not label:
            continue
        use = _icon_use(match, imported, str(path))
        if use is not None:
            line = line_of(match.start())
            yield Label(text=label, file=str(path), line=line, icon=use._replace(line=line))


def _icon_use(match: re.Match[str], imported: dict[str, Use], file: str) -> Use | None:
    if match[1] in imported:
        return imported[match[1]]
    is_other = match[1][0].isupper() and match[1] != "Icon"
    return None if is_other else next(uses_in(match[0], file), None)


def _label(attributes: str) -> str:
    return _clean(_first_group(_LABEL.search(attributes)))


def _parent_label(text: str, offset: int) -> str:
    """Return the label of the element that starts directly before a position."""
    found = _AROUND.search(text, max(0, offset - 1000), offset)
    return _label(found[1]) if found else ""


def _first_group(match: "re.Match[str] | None") -> str:
    return next((group for group in match.groups() if group is not None), "") if match else ""


def _clean(text: str) -> str:
    return " ".join(html.unescape(text).split())


def _as_document(svg: str) -> str:
    """Convert inline SVG to a document, with a namespace and XML attribute names."""
    for written, meant in (("className=", "class="), ("strokeWidth=", "stroke-width="), ("fillRule=", "fill-rule="),
                           ("strokeLinecap=", "stroke-linecap="), ("strokeLinejoin=", "stroke-linejoin="),
                           ("clipRule=", "clip-rule=")):  # fmt: skip
        svg = svg.replace(written, meant)
    return (
        svg if "xmlns=" in svg.partition(">")[0] else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    )


def _image_file(source: str, path: Path, root: Path, allowed: Sequence[Path]) -> Path | None:
    """Return the local file of an image, which may be outside the allowed folders.

    The result is None if the source is remote, has no image suffix, or is not a file. A path that starts with `/` is
    searched in the folders that may be the root of the site: first in `root`, then in its allowed parents.
    """
    source = html.unescape(source).partition("?")[0].partition("#")[0]
    if re.match(r"[a-zA-Z][\w+.-]*:|//", source) or not has_image_suffix(source):
        return None
    candidates = [path.parent / source]
    if source.startswith("/"):
        parents = [one for one in root.resolve().parents if _is_inside(one, allowed)]
        candidates = [site / base / source[1:] for site in (root, *parents) for base in _ROOTS]
    return next((one for one in candidates if os.path.isfile(one)), None)  # noqa: PTH113 (Path.is_file can raise)


def _is_inside(path: Path, allowed: Sequence[Path]) -> bool:
    """Return whether a path, after its links are resolved, is inside one of the allowed folders."""
    resolved = path.resolve()
    return any(resolved.is_relative_to(folder) for folder in allowed)
