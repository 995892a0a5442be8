"""Opens a source of pairs: finds the right reader for a path."""

from glob import glob
from pathlib import Path

from grr_coca.data.images import is_hidden
from grr_coca.data.sources.folder import ImageFolder
from grr_coca.data.sources.json_files import open_json
from grr_coca.data.sources.line_tables import open_delimited, open_json_lines
from grr_coca.data.sources.located import SCHEME
from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.parquet import open_parquet
from grr_coca.data.sources.shards.source import TarShards
from grr_coca.data.sources.text_files import open_flickr_tokens, open_roco
from grr_coca.data.sources.views import Chain
from grr_coca.errors import UserError
from grr_coca.files import in_cache, user_cache

READERS = {
    ".csv": open_delimited,
    ".tsv": open_delimited,
    ".jsonl": open_json_lines,
    ".ndjson": open_json_lines,
    ".parquet": open_parquet,
}
"""Readers of a table, by its suffix. `.tar`, `.json`, `.token` and ROCO's `captions.txt` are handled separately."""

LISTINGS = (
    "metadata.csv",
    "metadata.jsonl",
    "metadata.parquet",
    "captions.txt",
    "radiology/captions.txt",
    "results_20130124.token",
)
"""Files that reveal the format of a folder, the surest first. A folder without them holds images and text files."""

BUILT_IN_CACHE = ("icons", "scenes")
"""Corpora that `scripts/build_datasets` builds in the user's cache."""


def open_source(path: str | Path, needs_captions: bool = True) -> PairSource:
    """Open pairs in any of these formats. Path and content tell which.

    - tar shards as img2dataset writes them: a file, a pattern such as `data/*.tar`, or a folder of shards
    - COCO's `captions_train2017.json`, Karpathy's `dataset_coco.json#val` and `dataset_flickr30k.json#test`
      (`#train+restval` joins two splits), Flickr30K's `results_20130124.token`
    - ROCO: v1's folder with `captions.txt` and `images/`, v2's `train_captions.csv`
    - a table of paths and captions: CSV, TSV, Parquet, JSON lines, or a JSON list; a pattern joins several tables
    - a folder of images beside `.txt` files
    - `cache:icons/train-*.tar`: a corpus that was built in the user's cache

    Nothing is downloaded or executed. Images are read only when they are needed.

    Args:
        path: where the pairs are.
        needs_captions: whether a table without a column of captions is refused.

    Raises:
        UserError: there is nothing at the path, or nothing that can be read.
    """
    path = str(path)
    files, split = find_files(path)
    if split is None and all(file.suffix == ".tar" and not file.is_dir() for file in files):
        return TarShards(files)
    sources = [_open_one(file, split, needs_captions) for file in files]
    return sources[0] if len(sources) == 1 else Chain(sources)


def require_there(path: str) -> None:
    """Make sure that `open_source` would find something to open. Nothing is read.

    Raises:
        UserError: there is nothing at the path.
    """
    find_files(path)


def find_files(path: str) -> tuple[list[Path], str | None]:
    """The files, or the folder, that `open_source` would open for a path, and the split that follows `#`.

    Raises:
        UserError: nothing is there.
    """
    files, split = _files(path)
    if not files:
        where = Path(in_cache(path))
        raise UserError(f"{path}: no such file or folder, and no file matches it as a pattern{_what_is_there(where)}")
    return files, split


def shards_of(folder: Path) -> list[Path]:
    """The tar shards of a folder, hidden ones left out, in order."""
    return sorted(path for path in folder.glob("*.tar") if not is_hidden(path.name))


def _files(path: str) -> tuple[list[Path], str | None]:
    """The files or the folder of a path, and the split after `#`, if there is one."""
    path = in_cache(path)
    if Path(path).exists():
        return [Path(path)], None
    if SCHEME.match(path):
        raise UserError(f"{path}: not a file or folder; nothing is fetched or run, so give a path on this machine")
    found = [Path(name) for name in sorted(glob(path))]  # noqa: PTH207 (an absolute pattern)
    if found or "#" not in path:
        return found, None
    path, _, split = path.rpartition("#")
    return [Path(path)] if Path(path).is_file() else [], split


def _open_one(path: Path, split: str | None, needs_captions: bool = True) -> PairSource:
    if path.is_dir():
        return _open_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return open_json(path, split, needs_captions)
    if split is not None:
        raise _no_splits(path, split)
    if path.name == "captions.txt":
        return open_roco(path)
    if suffix == ".token":
        return open_flickr_tokens(path)
    if suffix not in READERS:
        known = ", ".join([".tar", ".json", *READERS, ".token"])
        raise UserError(f"{path}: not a tar shard, nor any other format that can be read ({known}, or a folder)")
    return READERS[suffix](path, needs_captions)


def _open_folder(folder: Path) -> PairSource:
    shards = shards_of(folder)
    if shards:
        return TarShards(shards)
    listing = next((folder / name for name in LISTINGS if _is_listing(folder / name)), None)
    return ImageFolder(folder) if listing is None else _open_one(listing, None)


def _is_listing(path: Path) -> bool:
    # `captions.txt` may also be the caption of an image `captions.jpg`.
    return path.is_file() and (path.name != "captions.txt" or (path.parent / "images").is_dir())


def _no_splits(path: Path, split: str) -> UserError:
    return UserError(f"{path}: has no splits to choose '{split}' from; only Karpathy's JSON files have")


def _what_is_there(path: Path) -> str:
    if path.is_relative_to(user_cache()) and not path.parent.is_dir():
        name = path.relative_to(user_cache()).parts[0]
        if name in BUILT_IN_CACHE:
            return f"; in a clone of the repository, `python scripts/build_datasets {name}` builds it there"
    siblings = sorted(entry.name for entry in path.parent.glob("*")) if path.parent.is_dir() else []
    return f"; {path.parent} holds {', '.join(siblings[:8])}" if siblings else ""
