"""Packages of Iconify, as `npm pack` writes them."""

import json
from pathlib import Path

from support import write_tar

from grr_coca_icons.sources.iconify import packages_folder


def write_package(path: Path, icons: dict, info: dict | None = None) -> Path:
    """Write the archive of an icon set, with separate metadata if there are any."""
    files = {"icons.json": icons} | ({} if info is None else {"info.json": info})
    return write_tar(path, {f"package/{name}": json.dumps(value).encode() for name, value in files.items()}, "w:gz")


def put_package(icons: dict, version: str = "1.0.0") -> Path:
    """Put the package of an icon set into the user's cache."""
    return write_package(packages_folder() / f"iconify-json-{icons['prefix']}-{version}.tgz", icons)
