"""A corpus in the user's cache: where it goes, whether it is there, and the files in its shards."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.common.files import require_own_name

OnProgress = Callable[[str, int], None]
"""Called with a stage of the build and the number of its steps that are done."""


def is_built(folder: Path, name: str) -> bool:
    """True if the corpus of that name is in the folder. If not, it can be built there.

    Raises:
        UserError: the folder holds something else, or is the current folder, which cannot be replaced.
    """
    require_own_name(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a new folder")
    if not folder.exists() or not any(folder.iterdir()):
        if folder.exists() and folder.samefile(Path.cwd()):
            raise UserError(f"{folder}: is the current folder, which cannot be replaced; give a new folder")
        return False
    if _name_in(folder / "card.json") != name:
        raise UserError(f"{folder}: holds something else; give a new folder")
    return True


def has_card(folder: Path, sha256: str) -> bool:
    """True if the corpus has this `card.json`, which has the checksums of all shards."""
    return hashlib.sha256((folder / "card.json").read_bytes()).hexdigest() == sha256


def odd_versions(drawn_with: Mapping[str, str]) -> list[str]:
    """Installed packages by which the pictures may differ from those of other machines, with both versions.

    Args:
        drawn_with: the version of each package with which the published corpus was drawn.
    """
    found = {name: version(name) for name in drawn_with}
    return [f"{name} {found[name]}, not {wanted}" for name, wanted in drawn_with.items() if found[name] != wanted]


def unit_hash(salt: str, name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that adding a sample moves no other."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big") / 2**64


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a shard. Its bytes depend on the arguments alone."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))


def _name_in(card: Path) -> object:
    """The name of the corpus of a card; None if the card cannot be read."""
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("name") if isinstance(content, dict) else None
