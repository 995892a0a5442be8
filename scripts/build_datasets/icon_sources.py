"""What the corpus `icons` is made of: pinned packages, the icon sets in them, and further words for their icons."""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icon_captions import further_caption

from grr_coca.common.errors import UserError
from grr_coca_serve.npm import NpmPackage, fetch_archive

PACKAGES: Mapping[str, NpmPackage] = {
    "iconify": NpmPackage(
        "@iconify/json", "2.2.535", "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91"
    ),
    "tabler": NpmPackage("@tabler/icons", "3.52.0", "626620c7d42afd2f294fba167ce4653b5cb946336d186b4991c70b700e5616af"),
    "lucide": NpmPackage("lucide-static", "1.62.0", "386f9080c440d6f5049cefe3456ae8357f7a0c7f76e59670cd1cb83bc7050a44"),
    "mdi": NpmPackage("@mdi/svg", "7.4.47", "de92e5dc9ce46c392ab5c53aa7190b19f82b40cb48872a083f788c7e13e91fef"),
    "phosphor": NpmPackage(
        "@phosphor-icons/core", "2.1.1", "313332be6190b724da24107addd781799b48bf76b13963f24501112ffe1baadd"
    ),
}


class Archives:
    """A folder of archives. Each is checked before it is read; nothing is unpacked to disk.

    Args:
        folder: where they lie.
        packages: those that belong there, by the name that the builder calls them.
    """

    def __init__(self, folder: Path, packages: Mapping[str, NpmPackage] = PACKAGES) -> None:
        self.folder = folder
        self.packages = packages

    def fetch(self, on_package: Callable[[int], None]) -> None:
        """Fetch missing archives from the registry that npm is set to.

        Raises:
            UserError: npm is not there or fails, or an archive is not the pinned one; says which file to put where.
        """
        for number, (key, package) in enumerate(self.packages.items(), start=1):
            if not (self.folder / package.archive).exists():
                fetch_archive(f"{package.name}@{package.version}", self.folder, self._by_hand())
            self.verify(key)
            on_package(number)

    def verify(self, key: str) -> Path:
        """Return the path of an archive, whose checksum is compared.

        Raises:
            UserError: it is missing, or its checksum is another.
        """
        package = self.packages[key]
        path = self.folder / package.archive
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {self._by_hand()}") from error
        if found != package.sha256:
            raise UserError(
                f"{path}: broken or changed: its sha256 is {found}, expected {package.sha256}; "
                "delete the file, and it is fetched again"
            )
        return path

    def files(self, key: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name (without `package/`) and content of the wanted files of a package, in the order in which they lie."""
        with tarfile.open(self.verify(key), "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix("package/")
                if member.isfile() and wanted(name):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield name, file.read()

    def text(self, key: str, name: str) -> str:
        """One file of a package, as text."""
        return next(self.files(key, name.__eq__))[1].decode()

    def json(self, key: str, name: str) -> Any:
        """Return the content of one JSON file of a package."""
        return json.loads(self.text(key, name))

    def _by_hand(self) -> str:
        missing = [package for package in self.packages.values() if not (self.folder / package.archive).exists()]
        files = "\n".join(f"  npm pack {package.name}@{package.version}  # {package.archive}" for package in missing)
        return f"where there are npm and a network, run what follows, and put the files into {self.folder}:\n{files}"


# --- Sets

LICENCES = frozenset({"MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-3.0"})
"""Accepted licences, as SPDX names. NC, SA and GPL are left out, and so are the rare OFL, MPL and Unlicense."""

LEFT_OUT_CATEGORIES = frozenset({"Emoji", "Logos"})
LEFT_OUT_WORDS = ("emoji", "flag", "logos", "brands")
_SOFTWARE = "devicon devicon-plain skill-icons vscode-icons material-icon-theme file-icons catppuccin gcp k8s unjs"
LEFT_OUT_SETS = frozenset({"healthicons", *_SOFTWARE.split()})
"""`healthicons` is the corpus `health`; the others are signs of software and of its files, logos under another
category."""

LOGO_SETS = ("simple-icons", "logos", "cib", "fa7-brands", "bxl", "streamline-logos")
"""Sets of logos whose names tell which icons of other sets are logos."""


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """An icon set: its prefix in Iconify, and what its notice must say."""

    prefix: str
    title: str
    author: str
    url: str
    licence: str

    @classmethod
    def of(cls, prefix: str, about: Mapping) -> "IconSet":
        """Return the set of an entry of Iconify's `collections.json`."""
        author = about["author"]
        return cls(
            prefix=prefix,
            title=about["name"],
            author=author["name"],
            url=author.get("url", ""),
            licence=about["license"]["spdx"],
        )


def why_left_out(prefix: str, about: Mapping) -> str | None:
    """Return the reason why a set is not in the corpus; None if it is."""
    title = about["name"].lower()
    if about["license"].get("spdx") not in LICENCES:
        return "licence"
    if about.get("category") in LEFT_OUT_CATEGORIES or any(word in f"{title} {prefix}" for word in LEFT_OUT_WORDS):
        return "emoji, logos or flags"
    return "another corpus, or signs of software" if prefix in LEFT_OUT_SETS else None


def kept_sets(collections: Mapping[str, Mapping]) -> dict[str, IconSet]:
    """Return the sets of the corpus, by prefix, in alphabetical order."""
    return {
        prefix: IconSet.of(prefix, about)
        for prefix, about in sorted(collections.items())
        if why_left_out(prefix, about) is None
    }


# --- Tags

Words = dict[str, list[str]]
"""Further words of icons, by name without words of style."""


def read_tags(archives: Archives) -> Mapping[str, Words]:
    """Further words of the icons of some sets, by the set's prefix in Iconify."""
    return {prefix: read(archives.text(key, file)) for prefix, (key, file, read) in _TABLES.items()}


def _tabler(content: str) -> Words:
    return {name: _clean(entry["tags"]) for name, entry in json.loads(content).items()}


def _lucide(content: str) -> Words:
    return {name: _clean(tags) for name, tags in json.loads(content).items()}


def _mdi(content: str) -> Words:
    """Return the aliases of each icon. The tags of this package are categories."""
    return {entry["name"]: _clean(entry["aliases"]) for entry in json.loads(content)}


def _phosphor(content: str) -> Words:
    """Return the tags of each icon, out of JavaScript: the package has no table in another form."""
    entries = re.findall(r'\bname: "([a-z0-9-]+)".*?\btags: (\[[^\]]*\])', content, flags=re.DOTALL)
    return {name: _clean(tag for tag in json.loads(tags) if not tag.startswith("*")) for name, tags in entries}


def _clean(tags: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(caption for tag in tags if (caption := further_caption(str(tag)))))


_TABLES: Mapping[str, tuple[str, str, Callable[[str], Words]]] = {
    "tabler": ("tabler", "icons.json", _tabler),
    "lucide": ("lucide", "tags.json", _lucide),
    "mdi": ("mdi", "meta.json", _mdi),
    "ph": ("phosphor", "dist/index.mjs", _phosphor),
}
