"""Which reader a path asks for."""

from glob import glob
from pathlib import Path

from grr_coca.data.folder import ImageFolder
from grr_coca.data.pairs import PairSource
from grr_coca.data.shards import TarShards
from grr_coca.errors import UserError


def open_source(path: str) -> PairSource:
    """Open tar shards (a file, a pattern such as `data/*.tar`, a folder) or a folder of images beside `.txt` files.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    folder = Path(path)
    if folder.is_dir():
        shards = sorted(folder.glob("*.tar"))
        return TarShards(shards) if shards else ImageFolder(folder)
    files = [folder] if folder.exists() else [Path(name) for name in sorted(glob(path))]  # noqa: PTH207 (an absolute pattern)
    if not files:
        raise UserError(f"{path}: no such file or folder, and no file matches it as a pattern{_what_is_there(folder)}")
    other = [file for file in files if file.suffix != ".tar"]
    if other:
        raise UserError(f"{other[0]}: not a tar shard; give .tar files, or a folder of images beside .txt files")
    return TarShards(files)


def _what_is_there(path: Path) -> str:
    siblings = sorted(entry.name for entry in path.parent.glob("*")) if path.parent.is_dir() else []
    return f"; {path.parent} holds {', '.join(siblings[:8])}" if siblings else ""
