"""Tools with which agents use icon indexes, independent of the Model Context Protocol.

Each tool returns text, and some tools also return a small contact sheet. Text from files (names, tags, captions) is
data: its control characters are escaped, and it is embedded in JSON, so that it cannot be mistaken for instructions.
"""

import base64
import binascii
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError, escape_control_chars
from grr_coca.data.images import encode_image
from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.base import BadSample
from grr_coca_icons.codemod.packages import usage_lines
from grr_coca_icons.match.candidates import Candidate, match_pictures
from grr_coca_icons.match.matcher import Matcher
from grr_coca_icons.match.picture_set import OpenPictureSet, name_of, read_file
from grr_coca_icons.svg import is_svg, render_svg
from grr_coca_search.entry import Entry
from grr_coca_search.index import Index
from grr_coca_search.store import open_store

_MAX_HITS, _SUGGESTIONS = 50, 3
_MAX_NAMES = 200
_MAX_QUERY = 500
_MAX_PICTURE = 5 * 2**20
"""Maximum size, in bytes, of an image that is passed as data."""
_MAX_SIDE = 1024
"""Side, in pixels, above which a passed image may be scaled down."""
_CELL, _COLUMNS, _MAX_CELLS = 72, 6, 18
"""Contact sheet: side of a cell in pixels, number of cells per row, and maximum number of cells."""


class ToolAnswer(NamedTuple):
    """Answer of a tool: JSON text, and the bytes of a PNG file, which are empty if the answer has no images."""

    text: str
    picture: bytes = b""


class IconTools:
    """Tools for icon indexes. All methods may be called from any thread, and only one runs at a time.

    The tools use the current state of the indexes, and reopen an index that was replaced. They raise `UserError` if an
    argument is invalid, or an index or the passed image cannot be read.

    Args:
        indexes: Indexes, by their names in the tools. They stay open.
        reads_files: Whether an image may be passed as a file in the folders of the indexes.
        read: Function that reads an image from an index.
        decode: Function that decodes an image. It takes the bytes, the name in messages, and a maximum side to which
            the image may be scaled down.
    """

    def __init__(
        self,
        indexes: Mapping[str, Index],
        *,
        reads_files: bool,
        read: Callable[[Entry], bytes] = read_file,
        decode: Callable[[bytes, str, int], Image.Image] = lambda data, name, _: decode_image(data, name, to_srgb=True),
    ) -> None:
        self._indexes = dict(indexes)
        self.reads_files = reads_files
        self._read, self._decode = read, decode
        self._lock = threading.Lock()
        self._sets: dict[str, tuple[str, OpenPictureSet]] = {}
        self._model = next(iter(indexes.values())).model  # all indexes use the same model
        self._matcher = Matcher(self._model)

    def warm_up(self) -> None:
        """Load the model, so that the first call need not wait for it."""
        with self._lock:
            self._model.loaded.embed_texts(["icon"])
            for index in self._indexes.values():
                index.model.loaded = self._model.loaded

    # --- Tools

    def search_icons(self, query: str, index: str | None = None, limit: int = 12) -> ToolAnswer:
        """Find the icons whose images fit a text best, in all indexes or in the given index."""
        with self._lock:
            return self._search_all(index, limit, lambda one, n: one.search(_require_short(query), n))

    def search_by_picture(
        self, data: str | None = None, file: str | None = None, index: str | None = None, limit: int = 12
    ) -> ToolAnswer:
        """Find the icons most similar to an image, which is either `data` (base64 or SVG) or `file`."""
        with self._lock:
            picture = self._picture(data, file)
            return self._search_all(index, limit, lambda one, n: one.search(image=picture, n=n))

    def match_icons(
        self, icons: Sequence[str], index: str | None = None, limit: int = 3, pictures: bool = False
    ) -> ToolAnswer:
        """Find the equivalents of icons in all other indexes, or in the given index.

        For a name that no index has, the answer has the most similar names, as in `check_names`. With `pictures`, the
        answer has a contact sheet of the icons and their equivalents.
        """
        names = _names(icons)
        with self._lock:
            count, each = _require_limit(limit), self._requested_indexes(index)
            found = {name: self._locate(name) for name in names}
            equivalents: dict[tuple[str, int], dict[str, tuple[Candidate, ...]]] = {}
            for own in dict.fromkeys(known[0] for known in found.values() if known is not None):
                others = [name for name in each if name != own or index is not None]
                if not others:
                    raise UserError(
                        f"'{own}' is the only index, so its icons have no equivalents; serve another index as well"
                    )
                rows = sorted({known[1] for known in found.values() if known is not None and known[0] == own})
                source = self._picture_set(own).set
                for other in others:
                    target = self._picture_set(other).set
                    numbers = self._matcher.numbers(source, target)
                    for match in match_pictures(source, target, numbers, n=count, rows=rows):
                        equivalents.setdefault((own, match.row), {})[other] = match.candidates
            answers: list[object] = []
            cells: list[bytes] = []
            for name, known in found.items():
                if known is None:
                    answers.append(self._check_name(name))
                    continue
                source_set = self._picture_set(known[0])
                answers.append(
                    {"icon": _one_line(source_set.set.names[known[1]]), "in": _match_records(equivalents[known])}
                )
                if pictures and len(cells) < _MAX_CELLS:
                    cells.append(_content(source_set.read, known[1]))
                    for other, candidates in equivalents[known].items():
                        cells += [_content(self._picture_set(other).read, one.row) for one in candidates]
            return ToolAnswer(_json(answers), self._sheet(cells))

    def caption_picture(self, data: str | None = None, file: str | None = None) -> ToolAnswer:
        """Caption an image, which is either `data` (base64 or SVG) or `file`."""
        with self._lock:
            described = self._model.loaded.describe(self._picture(data, file))
            assert not isinstance(described, list)
            first = described.captions[0].text
            return ToolAnswer(
                _json(
                    {
                        "caption": _one_line(first),
                        "confidence": described.confidence and round(described.confidence, 3),
                        "unfamiliar": described.unfamiliar,
                    }
                )
            )

    def get_icon(self, icon: str) -> ToolAnswer:
        """Return an icon's SVG document (null for another kind of image), its set, licence and author, lines of code
        that use it, and a picture of it."""
        with self._lock:
            own, row = self._find(icon)
            opened = self._picture_set(own)
            name, fields = opened.set.names[row], opened.fields[row]
            content = opened.read(row)
            prefix, _, short = name.partition(":")
            is_drawn = content.lstrip()[:5] in (b"<svg ", b"<?xml", b"<svg>")
            return ToolAnswer(
                _json(
                    {
                        "icon": name,
                        "svg": content.decode("utf-8", "replace") if is_drawn else None,
                        **{key: _one_line(str(fields[key])) for key in ("set", "licence", "author") if fields.get(key)},
                        "use": [
                            *usage_lines(prefix, short),
                            *([f'<Icon icon="{name}" />'] if "package" in fields else []),
                        ],
                    }
                ),
                self._sheet([content]),
            )

    def check_names(self, names: Sequence[str]) -> ToolAnswer:
        """Return the icon names that exist and, for each other name, the most similar existing names."""
        checked = _names(names)
        with self._lock:
            return ToolAnswer(_json([self._check_name(name) for name in checked]))

    def _check_name(self, name: str) -> dict[str, object]:
        known = self._locate(name)
        if known is not None:
            full = self._picture_set(known[0]).set.names[known[1]]
            return {"name": _one_line(name), "exists": True, **({} if full == name else {"icon": _one_line(full)})}
        near = self._nearest(name)
        return {"name": _one_line(name[:200]), "exists": False, **({"nearest": near} if near else {})}

    # --- Indexes and images

    def _requested_indexes(self, index: str | None) -> list[str]:
        if index is None:
            return list(self._indexes)
        if index not in self._indexes:
            raise UserError(f"unknown index '{_one_line(index)}'; valid names: {', '.join(self._indexes)}")
        return [index]

    def _index(self, name: str) -> Index:
        """Return an index, which is reopened if it was replaced.

        Raises:
            UserError: If the index does not exist, or belongs to another model.
        """
        index = self._indexes[name]
        if index.store.is_replaced:
            store = open_store(index.store.location)
            try:
                index.model.require(store.header, store.location)
            except UserError:
                store.close()
                raise
            index.close()
            index.store = store
            self._sets.pop(name, None)
        return index

    def _picture_set(self, name: str) -> OpenPictureSet:
        store = self._index(name).store
        revision = store.revision()
        if name not in self._sets or self._sets[name][0] != revision:
            self._sets[name] = (revision, self._matcher.open_store(store, self._read))
        return self._sets[name][1]

    def _find(self, icon: str) -> tuple[str, int]:
        """Return the index that contains an icon, and the icon's row in it.

        Raises:
            UserError: If no index has the icon.
        """
        known = self._locate(icon)
        if known is not None:
            return known
        near = self._nearest(icon)
        hint = f"; did you mean {', '.join(near)}?" if near else "; find icons with search_icons"
        raise UserError(f"unknown icon '{_one_line(icon[:200])}'{hint}")

    def _locate(self, icon: str) -> tuple[str, int] | None:
        found = ((own, self._picture_set(own).lookup.find(icon)) for own in self._indexes)
        return next(((own, row) for own, row in found if row is not None), None)

    def _nearest(self, icon: str) -> list[str]:
        """Return the full names of at most three icons that an unknown name may refer to, best first.

        They are from the first index that contains the set in the name's prefix or, if no index does, from the first
        index of all.
        """
        lookups = [self._picture_set(own).lookup for own in self._indexes]
        named = [one for one in lookups if icon.partition(":")[0] in one.prefixes]
        return [_one_line(name) for one in (named or lookups)[:1] for name in one.nearest(icon, _SUGGESTIONS)]

    def _search_all(self, index: str | None, limit: int, search: Callable[[Index, int], Any]) -> ToolAnswer:
        count = _require_limit(limit)
        hits = []
        for own in self._requested_indexes(index):
            result = search(self._index(own), count)
            hits += [(hit.relevance if result.can_tell else None, hit.score, own, hit.entry) for hit in result]
        hits.sort(key=lambda hit: -hit[1])
        rows = [
            {
                "icon": _one_line(name_of(entry)),
                "index": own,
                "shows": _one_line(entry.caption),
                **({} if relevance is None else {"relevance": round(relevance, 3)}),
                **({"licence": _one_line(str(entry.fields["licence"]))} if "licence" in entry.fields else {}),
            }
            for relevance, _, own, entry in hits[:count]
        ]
        contents = [_content(self._read, entry) for _, _, _, entry in hits[: min(count, _MAX_CELLS)]]
        return ToolAnswer(_json(rows), self._sheet(contents))

    def _picture(self, data: str | None, file: str | None) -> Image.Image:
        if (data is None) == (file is None):
            is_file = " or as file, not both" if self.reads_files else ""
            raise UserError(f"pass an image as data (base64 or SVG){is_file}")
        if data is not None:
            content = data.encode() if data.lstrip().startswith("<") else _decode_base64(data)
        else:
            content = self._file(str(file))
        if len(content) > _MAX_PICTURE:
            raise UserError(f"the image is too large: {len(content):,} bytes (limit {_MAX_PICTURE:,}); scale it down")
        return self._decode(content, "the picture", _MAX_SIDE)

    def _sheet(self, contents: Sequence[bytes]) -> bytes:
        """Return a small PNG file with the first 18 images in rows, on white. Empty if there are no images."""
        shown = contents[:_MAX_CELLS]
        rows = -(-len(shown) // _COLUMNS)
        if not rows:
            return b""
        sheet = Image.new("RGB", (_CELL * min(len(shown), _COLUMNS), _CELL * rows), "white")
        for number, content in enumerate(shown):
            try:
                image = self._thumbnail(content)
            except (BadSample, ValueError, OSError):
                continue  # the image was removed after it was indexed, or must not be shown, so its cell stays empty
            left, top = number % _COLUMNS * _CELL, number // _COLUMNS * _CELL
            sheet.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))
        is_grey = np.ptp(np.asarray(sheet), axis=2).max() == 0
        return encode_image(sheet.convert("L") if is_grey else sheet, "PNG")

    def _thumbnail(self, content: bytes) -> Image.Image:
        side = _CELL - 8
        if is_svg(content):  # drawn small, because a contact sheet is part of every answer
            drawn = render_svg(content.decode("utf-8-sig"), side)
            return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
        image = self._decode(content, "a picture", side)
        image.thumbnail((side, side))
        return image

    def _file(self, file: str) -> bytes:
        if not self.reads_files:
            raise UserError("files of the server cannot be read; pass the image as data")
        path = Path(file).resolve()
        roots = [Path(root).resolve() for name in self._indexes for root in self._index(name).store.roots()]
        if not any(path == root or path.is_relative_to(root) for root in roots if root.exists()):
            raise UserError("the file is not in the folder of an index; pass the image as data")
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"the file cannot be read ({error.strerror or error}); pass the image as data") from error


def _decode_base64(data: str) -> bytes:
    written = re.sub(r"^data:[\w/+.;-]+;base64,", "", data.strip())
    try:
        return base64.b64decode(written, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("the image must be base64 or SVG; URLs are not fetched") from error


def _content(read: Callable[[Any], bytes], which: object) -> bytes:
    """Return the bytes of an image. The result is empty if its file is missing or must not be shown."""
    try:
        return read(which)
    except UserError:
        return b""


def _names(names: Sequence[str]) -> list[str]:
    if len(names) > _MAX_NAMES:
        raise UserError(f"too many names: {len(names)} (limit {_MAX_NAMES}); pass fewer")
    return list(dict.fromkeys(map(str, names)))


def _match_records(found: Mapping[str, Sequence[Candidate]]) -> list[dict[str, object]]:
    return [
        {
            "index": index,
            "matches": [
                {"icon": _one_line(one.name), "probability": one.probability, "same_name": one.same_name}
                for one in candidates
            ],
        }
        for index, candidates in found.items()
    ]


def _require_short(text: str) -> str:
    if len(text) > _MAX_QUERY:
        raise UserError(f"query too long: {len(text):,} characters (limit {_MAX_QUERY}); shorten it")
    return text


def _require_limit(limit: int) -> int:
    if not 1 <= limit <= _MAX_HITS:
        raise UserError(f"limit must be from 1 to {_MAX_HITS}, got {limit}")
    return limit


def _one_line(text: str) -> str:
    """Convert text from a file to one line of at most 500 characters. Line ends, control characters and marks that
    change the text direction are escaped."""
    return escape_control_chars(text)[:500]


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
