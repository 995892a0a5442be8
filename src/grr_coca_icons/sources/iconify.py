"""Iconify icon sets: a JSON file, a package `@iconify-json/PREFIX`, or `iconify:PREFIX`, which npm downloads once.

The format is documented at https://iconify.design/docs/types/iconify-json.html. A package is an npm archive with
`icons.json` and `info.json`. Archives are stored in the user's cache, and nothing in them is executed.
"""

import io
import json
import math
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from grr_coca.common.errors import UserError, escape_control_chars, suggest_name
from grr_coca.common.files import file_sha256, is_offline, read_file_bytes, user_cache
from grr_coca.data.images import MAX_BYTES
from grr_coca_icons.sources.icon_set import MAX_SVG, Icon, IconSet, svg_document
from grr_coca_serve.npm import fetch_archive

SCHEME = "iconify:"
"""Start of an argument such as `iconify:lucide` or `iconify:lucide@1.2.3`."""

_ARGUMENT = re.compile(
    r"iconify:(?P<prefix>[a-z0-9]+(?:-[a-z0-9]+)*)(?:@(?P<version>[\w.+-]+))?(?:#(?P<sha256>[0-9a-f]+))?"
)
_PREFIXES = Path(__file__).with_name("iconify_prefixes.txt")
_MAX_SIDE = 1e6
_ARCHIVE_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError)


class Package(NamedTuple):
    """Archive of an npm package: its file, its version, and the SHA-256 of its bytes."""

    file: Path
    version: str
    sha256: str

    def pin(self, prefix: str) -> str:
        """Return the package's name, version and checksum, such as `@iconify-json/lucide@1.2.3 sha256-ab…`."""
        return f"@iconify-json/{prefix}@{self.version} sha256-{self.sha256}"


def _parse_argument(argument: str) -> re.Match[str]:
    """Parse an argument `iconify:PREFIX`.

    Raises:
        UserError: If the argument does not have this form.
    """
    found = _ARGUMENT.fullmatch(argument)
    if found is None:
        raise UserError(f"{argument}: not a valid set name; expected iconify:PREFIX, such as iconify:lucide")
    return found


def pin_version(argument: str, pin: str) -> str:
    """Add the version and checksum in a text from `Package.pin` to an argument `iconify:PREFIX`.

    The argument is returned unchanged if it already has a version, or the text is not from `Package.pin`.
    """
    found = re.fullmatch(r"@iconify-json/[^@]+@(\S+) sha256-([0-9a-f]{64})", pin)
    return argument if found is None or "@" in argument else f"{argument}@{found[1]}#{found[2]}"


def read_package(argument: str) -> IconSet:
    """Return the icon set that an argument `iconify:PREFIX` names. Its package is downloaded if it is not cached.

    Raises:
        UserError: If the argument is invalid, the set does not exist, npm is missing or fails, downloads are disabled,
            or a downloaded package is corrupt or differs from the version that the argument pins.
    """
    prefix = _parse_argument(argument)["prefix"]
    package = find_package(argument)
    return _parse_archive(package.file.read_bytes(), str(package.file), prefix, package.pin(prefix))


def find_package(argument: str) -> Package:
    """Return the package that an argument `iconify:PREFIX` names. It is downloaded if it is not cached.

    Raises:
        UserError: As for `read_package`.
    """
    prefix, version, sha256 = _parse_argument(argument).groups()
    path = _cached_archive(prefix, version) or _fetch(prefix, version)
    package = Package(path, _version_of(path, prefix), _sha256(str(path), path.stat().st_mtime_ns))
    if sha256 and package.sha256 != sha256:
        raise UserError(
            f"{path}: not the package that was indexed: its SHA-256 is {package.sha256[:16]}…, not {sha256[:16]}…; "
            f"delete the file to download it again, or name a version: iconify:{prefix}@{package.version}"
        )
    return package


def read_iconify(path: Path) -> IconSet:
    """Read the icon set in a JSON file.

    Raises:
        UserError: If the file cannot be read, or is not an Iconify set.
    """
    return parse_json(read_file_bytes(path), str(path))


def is_icon_json(content: object) -> bool:
    """Return whether the parsed content of a JSON file looks like an Iconify set: it has a prefix and icons."""
    return isinstance(content, dict) and isinstance(content.get("icons"), dict) and "prefix" in content


def read_folder(folder: Path) -> IconSet | None:
    """Read the icon set in an unpacked Iconify package, or return None for any other folder.

    Raises:
        UserError: If a file in the package cannot be read, or is not an Iconify set.
    """
    if not (folder / "icons.json").is_file() or not (folder / "info.json").is_file():
        return None
    return parse_json(
        read_file_bytes(folder / "icons.json"), str(folder / "icons.json"), read_file_bytes(folder / "info.json")
    )


def read_archive(path: Path) -> IconSet:
    """Read the icon set in an archive that `npm pack @iconify-json/PREFIX` has written.

    Raises:
        UserError: If the archive cannot be read, is corrupt, or has no icon set.
    """
    return _parse_archive(read_file_bytes(path), str(path), "", "")


# --- JSON


def parse_json(content: bytes, name: str, info: bytes | None = None, package: str = "") -> IconSet:
    """Parse the content of a JSON file as an icon set.

    Args:
        content: Content of `icons.json`.
        name: File name for messages.
        info: Content of `info.json`. None if the metadata is part of `content`.
        package: Value of `IconSet.package`.

    Raises:
        UserError: If the content is not an Iconify set.
    """
    try:
        about = json.loads(content)
        metadata = json.loads(info) if info is not None else about.get("info") if isinstance(about, dict) else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid JSON ({error}); pass another file") from error
    if not is_icon_json(about):
        raise UserError(
            f"{name}: not an Iconify set: 'prefix' and 'icons' are missing; pass a file in Iconify's format"
        )
    metadata = metadata if isinstance(metadata, dict) else {}
    every = list(_icons(about))
    icons = [icon for icon, is_hidden in every if not is_hidden]
    if not icons:
        raise UserError(f"{name}: this Iconify set has no icons; pass another set")
    return IconSet(
        prefix=escape_control_chars(str(about["prefix"])),
        icons=icons,
        title=_text(metadata.get("name")),
        author=_text(metadata.get("author"), "name"),
        licence=_text(metadata.get("license"), "spdx") or _text(metadata.get("license"), "title"),
        package=package,
        retired=[icon for icon, is_hidden in every if is_hidden],
    )


def _text(value: object, key: str = "") -> str:
    value = value.get(key, "") if isinstance(value, dict) else value
    return escape_control_chars(value) if isinstance(value, str) else ""


def _icons(about: Mapping[str, Any]) -> Iterator[tuple[Icon, bool]]:
    """Yield the icons of a set, and whether each is hidden. An alias that transforms its icon is a separate icon."""
    icons, aliases = about["icons"], about.get("aliases")
    aliases = aliases if isinstance(aliases, dict) else {}
    same: dict[str, list[str]] = defaultdict(list)
    transformed: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in aliases:
        parent, changes = _resolve_alias(name, aliases)
        if parent not in icons:
            continue
        if changes:
            transformed[name] = (parent, changes)
        else:
            same[parent].append(escape_control_chars(name))
    for name, icon in icons.items():
        yield _icon(name, icon, about, same[name]), isinstance(icon, dict) and bool(icon.get("hidden"))
    for name, (parent, transform) in transformed.items():
        if isinstance(icons[parent], dict):
            yield _icon(name, {**icons[parent], **transform}, about, ()), bool(aliases[name].get("hidden"))


_TRANSFORM_KEYS = ("left", "top", "width", "height", "rotate", "hFlip", "vFlip")


def _resolve_alias(name: str, aliases: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the icon that an alias refers to, and how the alias transforms it. Cyclic aliases refer to no icon."""
    changes: dict[str, Any] = {}
    seen: set[str] = set()
    while name in aliases and name not in seen and isinstance(aliases[name], dict):
        seen.add(name)
        alias = aliases[name]
        for key in _TRANSFORM_KEYS:
            if key in alias:
                changes = _combine_transform(changes, key, alias[key])
        name = str(alias.get("parent", ""))
    return name, changes


def _combine_transform(changes: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    if key == "rotate" and isinstance(value, int):
        return {**changes, key: (int(changes.get(key, 0)) + value) % 4}
    if key in ("hFlip", "vFlip"):
        return {**changes, key: bool(changes.get(key)) != bool(value)}
    return {key: value, **changes}  # for nested aliases, the outer one takes precedence


def _icon(name: str, icon: object, defaults: Mapping[str, Any], aliases: "list[str] | tuple[()]") -> Icon:
    name = escape_control_chars(str(name))
    body = icon.get("body") if isinstance(icon, dict) else None
    if not isinstance(icon, dict) or not isinstance(body, str):
        return Icon(name, "", tuple(aliases), problem="drawing ('body') is missing")
    if len(body) > MAX_SVG:
        return Icon(name, "", tuple(aliases), problem=f"has {len(body):,} characters (limit {MAX_SVG:,})")
    box = []
    for key, usual in {"left": 0, "top": 0, "width": 16, "height": 16}.items():
        side = icon.get(key, defaults.get(key, usual))
        if isinstance(side, bool) or not isinstance(side, int | float) or not abs(side) <= _MAX_SIDE:
            return Icon(name, "", tuple(aliases), problem=f"'{key}' must be a number of at most {_MAX_SIDE:,.0f}")
        box.append(float(side))
    if not (box[2] > 0 and box[3] > 0):
        return Icon(name, "", tuple(aliases), problem="its view box is empty")
    return Icon(name, svg_document(*_apply_transform(body, icon, *box)), tuple(aliases))


def _apply_transform(
    body: str, icon: Mapping[str, Any], left: float, top: float, width: float, height: float
) -> tuple[str, float, float, float, float]:
    """Apply an icon's transformations to its drawing and box: first flips, then rotation by quarter turns."""
    middle_x, middle_y = left + width / 2, top + height / 2
    quarters = icon.get("rotate", 0)
    quarters = quarters % 4 if isinstance(quarters, int) else 0
    flip_x, flip_y = -1 if icon.get("hFlip") else 1, -1 if icon.get("vFlip") else 1
    if quarters == 0 and flip_x == flip_y == 1:
        return body, left, top, width, height
    cos, sin = round(math.cos(quarters * math.pi / 2)), round(math.sin(quarters * math.pi / 2))
    a, b, c, d = cos * flip_x, sin * flip_x, -sin * flip_y, cos * flip_y
    moved = (middle_x - a * middle_x - c * middle_y, middle_y - b * middle_x - d * middle_y)
    body = f'<g transform="matrix({a} {b} {c} {d} {moved[0]:.9g} {moved[1]:.9g})">{body}</g>'
    if quarters % 2:
        return body, middle_x - height / 2, middle_y - width / 2, height, width
    return body, left, top, width, height


# --- Packages


def _parse_archive(content: bytes, name: str, prefix: str, package: str) -> IconSet:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            for member in tar:
                base = member.name.partition("/")[2]
                if member.isfile() and base in ("icons.json", "info.json"):
                    if member.size > MAX_BYTES:
                        raise ValueError(f"{base} is too large: {member.size:,} bytes (limit {MAX_BYTES:,})")
                    opened = tar.extractfile(member)
                    assert opened is not None
                    files[base] = opened.read()
    except _ARCHIVE_ERRORS as error:
        raise UserError(f"{name}: corrupt npm package ({error}); delete the file to download it again") from error
    if "icons.json" not in files:
        raise UserError(
            f"{name}: this npm package has no icons.json; pass a package of the scope @iconify-json, such as "
            "@iconify-json/lucide"
        )
    found = parse_json(files["icons.json"], f"{name}: icons.json", files.get("info.json"), package)
    if prefix and found.prefix != prefix:
        raise UserError(
            f"{name}: contains the set '{found.prefix}' instead of '{prefix}'; delete the file to download it again"
        )
    return found


def packages_folder() -> Path:
    """Return the folder of downloaded packages in the user's cache."""
    return user_cache() / "icon-sets" / "packages"  # the folder `icons` belongs to the corpus


def _archive_name(prefix: str, version: str) -> str:
    """Return the file name that `npm pack` gives an archive."""
    return f"iconify-json-{prefix}-{version}.tgz"


def _version_of(path: Path, prefix: str) -> str:
    return path.name.removeprefix(f"iconify-json-{prefix}-").removesuffix(".tgz")


def _cached_archive(prefix: str, version: str | None) -> Path | None:
    """Return the archive of a set in the user's cache, or None if the cache does not have it.

    If `version` is None, the newest cached version is returned.
    """
    folder = packages_folder()
    if version is not None:
        path = folder / _archive_name(prefix, version)
        return path if path.is_file() else None
    # A version begins with a digit, so `iconify-json-fluent-emoji-1.2.3.tgz` does not belong to the set `fluent`.
    paths = [path for path in folder.glob(f"iconify-json-{prefix}-*.tgz") if _version_of(path, prefix)[:1].isdigit()]
    return max(paths, key=lambda path: _version_key(_version_of(path, prefix)), default=None)


def _version_key(version: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.+-]", version)]


@lru_cache(maxsize=64)
def _sha256(path: str, changed: int) -> str:  # noqa: ARG001 (a changed file is read again)
    return file_sha256(Path(path))


def _fetch(prefix: str, version: str | None) -> Path:
    requested = f"@iconify-json/{prefix}" + (f"@{version}" if version else "")
    folder = packages_folder()
    file = _archive_name(prefix, version or "VERSION")
    by_hand = f"on a machine with npm, `npm pack {requested}` writes {file}: put it into {folder}{_prefix_hint(prefix)}"
    if is_offline():
        raise UserError(f"iconify:{prefix}: not on this machine, and --offline prevents downloads; {by_hand}")

    def check(path: Path) -> None:
        _parse_archive(path.read_bytes(), f"npm pack {requested}", prefix, "")

    def reason(output: str) -> str | None:
        if "E404" in output or "404 Not Found" in output:
            return f"iconify:{prefix}: package {requested} not found{_prefix_hint(prefix)}"
        if "ETARGET" in output or "No matching version" in output:
            return f"iconify:{prefix}: version not found: {requested}"
        return None

    return fetch_archive(requested, folder, by_hand, check=check, reason=reason)


def _prefix_hint(prefix: str) -> str:
    """Return a hint for a prefix: the most similar known one, or else where to find all. Empty for a known prefix."""
    known = known_prefixes()
    if prefix in known:
        return ""
    guess = suggest_name(prefix, known)
    return f"; {guess}" if guess.startswith("did you mean") else "; https://icon-sets.iconify.design lists all sets"


@lru_cache(maxsize=1)
def known_prefixes() -> frozenset[str]:
    """Return the prefixes of all Iconify sets that existed when this version was released."""
    return frozenset(_PREFIXES.read_text(encoding="utf-8").split())
