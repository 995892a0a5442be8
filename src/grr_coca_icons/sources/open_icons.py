"""Open icon sources: an Iconify set, a sprite or a font. Their SVG documents are packed into one file.

A pack is stored in the user's cache. It consists of the concatenated SVG documents, and a JSON object with their names,
offsets and fields. An index refers to each icon as a part of a file, like a member of a shard. The name of a pack is a
hash of its sources, so a pack never changes, and is rebuilt if it is missing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_file_bytes, user_cache, write_atomic
from grr_coca.data.image_files import ImageFile
from grr_coca.data.sources.base import PACK_SUFFIX, BadSample, Cause, PairSource, RawPair, SourceImage, digest_header
from grr_coca_icons.icon_names import words_of_name
from grr_coca_icons.sources import icon_fonts, iconify, sprites
from grr_coca_icons.sources.icon_set import Icon, IconSet

_VERSION = 2
_END = 8
"""Number of bytes at the end of a pack that contain the offset of its JSON object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedIcon:
    """Icon in a pack.

    Attributes:
        name: Name that is unique in its set.
        offset, size: Position and length of its SVG document in the pack, in bytes. If the size is 0, the document is
            missing.
        fields: Metadata, see `IconSet.fields`.
        words: Words of its aliases.
        problem: Reason why the document is missing. Empty if it exists.
    """

    name: str
    offset: int
    size: int
    fields: dict[str, str]
    words: tuple[str, ...]
    problem: str


class PackedIcons(NamedTuple):
    """Icons of one argument, and the file with their SVG documents."""

    argument: str
    file: Path
    icons: list[PackedIcon]

    def full_name(self, icon: PackedIcon) -> str:
        """Return the argument and the icon's name, such as `iconify:lucide: trash-2`."""
        return f"{self.argument}: {icon.name}"


def is_icon_source(argument: str) -> bool:
    """Return whether an argument may be an icon source, judging by its name.

    A JSON or SVG file may still be something else.
    """
    return argument.startswith(iconify.SCHEME) or Path(argument).suffix.lower() in {
        *icon_fonts.SUFFIXES,
        ".json",
        ".svg",
        ".tgz",
    }


def read_icons(argument: str) -> IconSet | None:
    """Read the icons of an argument. Return None if it is not an icon source, but for example a folder of SVG files.

    Args:
        argument: `iconify:PREFIX`, an Iconify JSON file, an archive or unpacked folder of `@iconify-json/PREFIX`, an
            SVG sprite, or an icon font.

    Raises:
        UserError: If the source is corrupt, or unavailable.
    """
    if argument.startswith(iconify.SCHEME):
        return iconify.read_package(argument)
    path = Path(argument)
    suffix = path.suffix.lower()
    if suffix in icon_fonts.SUFFIXES and path.is_file():
        return icon_fonts.read_font(path)
    if suffix == ".json" and path.is_file() and _looks_like_iconify(path):
        return iconify.read_iconify(path)
    if suffix == ".tgz" and path.is_file():
        return iconify.read_archive(path)
    if suffix == ".svg":
        return sprites.read_sprite(path)
    return iconify.read_folder(path) if path.is_dir() else None


def _looks_like_iconify(path: Path) -> bool:
    """Return whether the first MiB of a JSON file looks like an icon set. This avoids parsing tables with millions of
    rows.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2**20)
    except OSError:
        return False
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and b'"prefix"' in head and b'"annotations"' not in head


def open_icons(argument: str) -> PackedIcons | None:
    """Return the packed icons of an argument, or None if it is not an icon source. A missing pack is written to the
    cache.

    Raises:
        UserError: As for `read_icons`, and if the user's cache cannot be written to.
    """
    if not is_icon_source(argument) and not (Path(argument) / "icons.json").is_file():
        return None
    found = read_icons(argument)
    if found is None:
        return None
    name = argument.partition("@")[0] if argument.startswith(iconify.SCHEME) else argument
    return PackedIcons(name, *_pack(found))


def retired_icons(argument: str) -> list[ImageFile]:
    """Return the icons that an argument's set has dropped. The result is empty if the argument is not an Iconify set.

    Raises:
        UserError: As for `read_icons`.
    """
    found = read_icons(argument) if is_icon_source(argument) or (Path(argument) / "icons.json").is_file() else None
    if found is None:
        return []
    return [
        ImageFile(f"{argument}: {icon.name}", partial(_svg_bytes, icon), None, partial(found.fields, icon))
        for icon in found.retired
        if icon.svg
    ]


def _svg_bytes(icon: Icon) -> bytes:
    return icon.svg.encode("utf-8", "replace")  # a JSON file may contain half of a surrogate pair


def _pack(icons: IconSet) -> tuple[Path, list[PackedIcon]]:
    digest = blake2b(digest_size=16)
    for part in (str(_VERSION), icons.prefix, icons.title, icons.author, icons.licence, icons.package):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    for icon in icons.icons:
        digest.update("\0".join((icon.name, icon.svg, *icon.aliases)).encode("utf-8", "surrogatepass") + b"\1")
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in icons.prefix)[:60] or "icons"
    path = user_cache() / "icon-sets" / "packed" / digest.hexdigest() / f"{stem}{PACK_SUFFIX}"
    if not path.is_file():
        _write(path, icons)
    return path, _read(path)


def _write(path: Path, icons: IconSet) -> None:
    parts: list[bytes] = []
    listed: list[dict[str, Any]] = []
    offset = 0
    for icon in icons.icons:
        svg = _svg_bytes(icon)
        words = list(dict.fromkeys(map(words_of_name, icon.aliases)))
        listed.append(
            {
                "name": icon.name,
                "offset": offset,
                "size": len(svg),
                "fields": icons.fields(icon),
                "words": words,
                "problem": icon.problem,
            }
        )
        parts.append(svg)
        offset += len(svg)
    content = b"".join([*parts, json.dumps(listed).encode(), offset.to_bytes(_END, "big")])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); set XDG_CACHE_HOME to another folder"
        ) from error


def _read(path: Path) -> list[PackedIcon]:
    content = read_file_bytes(path)
    try:
        start = int.from_bytes(content[-_END:], "big")
        listed = json.loads(content[start:-_END])
        return [PackedIcon(**{**icon, "words": tuple(icon["words"])}) for icon in listed]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: corrupt; delete this file, and run the command again to rebuild it") from error


# --- Pairs, for training and evaluation


class IconPairs(PairSource):
    """Icons of one argument as pairs of a drawing and the words of its name. Aliases are additional captions."""

    def __init__(self, packed: PackedIcons) -> None:
        self._packed = packed
        self._icons: Sequence[PackedIcon] = packed.icons

    def __len__(self) -> int:
        return len(self._icons)

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the parts of the digest of the icons, which covers drawings, names, aliases and the set's metadata."""
        yield digest_header(self)
        yield self._packed.file.parent.name.encode()

    def __getitem__(self, index: int) -> RawPair:
        """Read the pair with an index.

        Raises:
            BadSample: If the drawing is missing, or the name has no words.
        """
        icon = self._icons[index]
        image = self.image(index)
        first, *more = self.captions(index)
        name = self.name(index)
        return RawPair(icon.name, name, image, first, more_captions=tuple(more), image_name=name)

    def image(self, index: int) -> bytes:
        """Read the SVG of an icon.

        Raises:
            BadSample: If the drawing is missing.
        """
        icon = self._icons[index]
        if not icon.size:
            raise BadSample(f"{self.name(index)}: {icon.problem}", Cause.BROKEN_IMAGE)
        with self._packed.file.open("rb") as file:
            file.seek(icon.offset)
            return file.read(icon.size)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the words of an icon's name, then those of each alias.

        Raises:
            BadSample: If the name has no letters or digits.
        """
        icon = self._icons[index]
        own = words_of_name(icon.name)
        if not own:
            raise BadSample(f"{self.name(index)}: a name without letters or digits", Cause.EMPTY_CAPTION)
        return tuple(dict.fromkeys((own, *icon.words)))

    def name(self, index: int) -> str:
        """Return the full name of the icon."""
        return self._packed.full_name(self._icons[index])

    def container(self, index: int) -> str:  # noqa: ARG002 (all are in one)
        """Return the argument from which the icons come, which is the same for all of them."""
        return self._packed.argument


class IconReader:
    """Reader of icon sets, sprites and fonts for the core, see `grr_coca.data.sources.base.SourceReader`."""

    def owns(self, argument: str) -> bool:
        """Return whether an argument is `iconify:PREFIX`."""
        return argument.startswith(iconify.SCHEME)

    def find_file(self, argument: str) -> Path:
        """Return the archive of the package for an argument `iconify:PREFIX`. It is downloaded if it is not cached.

        Raises:
            UserError: As for `iconify.find_package`.
        """
        return iconify.find_package(argument).file

    def open(self, argument: str) -> IconPairs | None:
        """Open the icons of an argument as pairs. Return None if it is not an icon source.

        Raises:
            UserError: As for `open_icons`.
        """
        packed = open_icons(argument)
        return None if packed is None else IconPairs(packed)

    def images(self, argument: str) -> list[SourceImage] | None:
        """Return the icons of an argument as images. Return None if it is not an icon source.

        Raises:
            UserError: As for `open_icons`.
        """
        packed = open_icons(argument)
        if packed is None:
            return None
        return [
            SourceImage(
                name=packed.full_name(icon),
                inner=icon.name,
                file=packed.file,
                offset=icon.offset,
                size=icon.size,
                fields=icon.fields,
                keywords=icon.words,
                problem=icon.problem,
            )
            for icon in packed.icons
        ]

    def pin_version(self, argument: str, fields: Mapping[str, object]) -> str:
        """Add to `iconify:PREFIX` the version and checksum of the package from which an icon with these fields came."""
        return iconify.pin_version(argument, str(fields.get("package", "")))

    def remove_version(self, argument: str) -> str:
        """Return `iconify:PREFIX` without a version."""
        return argument.partition("@")[0]


READER = IconReader()
