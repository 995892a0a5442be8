"""Pinned packages, and reading files straight out of their archives.

Nothing is unpacked to disk: what is read comes from a checked archive, never from a stray edited file.
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

    kind: Literal["apt", "pip"]
    name: str
    version: str
    archive: str
    sha256: str
    licence: str


def fetch(package: Package, folder: Path) -> None:
    """Ask the package's own client for the archive; an archive that already lies there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / package.archive).exists():
        return
    commands: dict[str, list[str]] = {
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
    """Return the archive's path, or refuse it: another archive would give other results."""
    path = folder / package.archive
    if not path.exists():
        raise ValueError(f"{path} is missing")
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
