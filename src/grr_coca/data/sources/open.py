"""Open sources of pairs: choose the reader for a path, and read annotations of COCO, Flickr30K, ROCO and others."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from grr_coca.common import remote
from grr_coca.common.errors import UserError, suggest_name
from grr_coca.common.files import expand_cache_prefix, is_url, require_nonempty_path, user_cache
from grr_coca.common.remote import RemoteFile, expand_braces
from grr_coca.data.sources.base import PairSource, reader_that_owns, source_readers
from grr_coca.data.sources.columns import as_captions, find_columns
from grr_coca.data.sources.feature_pairs import PAIRS, FeaturePairs, is_feature_folder
from grr_coca.data.sources.folder import ImageFolder
from grr_coca.data.sources.listed import SCHEME, ListedPairs, ListedRow, StoredRows, first_paths, locate_images
from grr_coca.data.sources.parquet import open_parquet
from grr_coca.data.sources.shards import TarShards
from grr_coca.data.sources.tables import open_delimited, open_json_lines
from grr_coca.data.sources.views import Chain
from grr_coca.data.tokenizer import decode_text
from grr_coca.data.walk import is_hidden

_READERS = {
    ".csv": open_delimited,
    ".tsv": open_delimited,
    ".jsonl": open_json_lines,
    ".ndjson": open_json_lines,
    ".parquet": open_parquet,
}
"""Readers of tables, by suffix. `.tar`, `.json`, `.token` and ROCO's `captions.txt` are handled separately."""

_LISTINGS = (
    "metadata.csv",
    "metadata.jsonl",
    "metadata.parquet",
    "captions.txt",
    "radiology/captions.txt",
    "results_20130124.token",
)
"""Files by which the format of a folder is recognized, in order of priority. A folder without any of them contains
images and text files."""

_BUILT_IN_CACHE = "icons"
"""Name of the corpus that `scripts/build_datasets` builds in the user's cache."""


def open_source(path: str | Path, needs_captions: bool = True, needs_images: bool = True) -> PairSource:
    """Open a source of pairs.

    The path and the content determine the format, which is one of the following:

    - tar shards in the layout of img2dataset: a file, a pattern such as `data/*.tar` or `data/{00000..01242}.tar`, or a
      folder of shards
    - COCO: `captions_train2017.json`
    - Karpathy's splits: `dataset_coco.json#val` or `dataset_flickr30k.json#test`; `#train+restval` joins two splits
    - Flickr30K: `results_20130124.token`
    - ROCO: the folder with `captions.txt` and `images/` of version 1, or `train_captions.csv` of version 2
    - a table of paths and captions: CSV, TSV, Parquet, JSON lines, or a JSON list; a pattern joins several tables
    - a Parquet table with the bytes of images, as in Hugging Face datasets
    - a folder of images next to `.txt` files
    - a folder of image features written by `grr-coca data features`; its file `pairs.jsonl` opens the original images
    - icons with their names: `iconify:PREFIX`, an Iconify JSON file, an SVG sprite, or an icon font
    - a corpus built in the user's cache: `cache:icons/train-*.tar`
    - remote tar shards, or remote Parquet tables with the bytes of images, after `grr-coca data index`:
      `s3://BUCKET/{00000..01242}.tar`, `https://…`

    Nothing is executed, and nothing is downloaded except the package of `iconify:PREFIX` and the images of remote
    shards and tables. Images are read on demand.

    Args:
        path: A file, a folder or a pattern. A split can be appended after `#`.
        needs_captions: Whether a table must have a caption column.
        needs_images: Whether at least one of the first images of a table must exist.

    Raises:
        UserError: If the path does not exist, cannot be read, has an unsupported format, or contains no pairs.
    """
    path = str(path)
    if is_url(path):
        return TarShards(remote_shards(path))
    for reader in source_readers(path):
        source = reader.open(expand_cache_prefix(path))
        if source is not None:
            return source
    files, split = find_files(path)
    if split is None and all(file.suffix.lower() == ".tar" and not file.is_dir() for file in files):
        return TarShards(files)
    try:
        sources = [_open_one(file, split, needs_captions, needs_images) for file in files]
    except OSError as error:  # permission is denied, or the drive fails
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error
    return sources[0] if len(sources) == 1 else Chain(sources)


def require_exists(path: str) -> None:
    """Check that the path of a source exists, without reading the source.

    For a URL, this sends requests. The package of `iconify:PREFIX` is downloaded if it is missing.

    Raises:
        UserError: If the path does not exist, or a URL is invalid or cannot be reached.
    """
    if is_url(path):
        remote_shards(path)
    else:
        find_files(path)


def remote_shards(pattern: str) -> list[RemoteFile]:
    """Find the remote tar shards and Parquet tables that match a URL pattern, and return their current state.

    Raises:
        UserError: If a file is missing or has another format, or `find_remote` rejects the pattern.
    """
    files = remote.find_remote(pattern)
    other = next((file for file in files if not file.name.lower().endswith((".tar", ".parquet"))), None)
    if other is not None:
        raise UserError(
            f"{other}: only tar shards and Parquet can be read remotely; download this file, or convert it to shards"
        )
    return files


def find_files(path: str) -> tuple[list[Path], str | None]:
    """Return the files or the folder that `open_source` opens for a path, and the split after `#`, or None.

    Raises:
        UserError: If the path is empty, does not exist, or is a URL.
    """
    require_nonempty_path(path)
    files, split = _files(path)
    if not files:
        where = Path(expand_cache_prefix(path))
        raise UserError(f"{path}: no such file or folder, and no file matches it as a pattern{_format_siblings(where)}")
    return files, split


def shards_of(folder: Path) -> list[Path]:
    """Return the visible tar shards in a folder, sorted."""
    return sorted(path for path in folder.glob("*.[tT][aA][rR]") if not is_hidden(path.name))


def _files(path: str) -> tuple[list[Path], str | None]:
    """Return the files or the folder that a path specifies, and the split after `#`, or None.

    The list is empty if no file matches. Files of a pattern with braces are returned even if they do not exist.
    """
    path = expand_cache_prefix(path)
    if (reader := reader_that_owns(path)) is not None:
        return [reader.find_file(path)], None
    if Path(path).exists():
        return [Path(path)], None
    if SCHEME.match(path):
        raise UserError(
            f"{path}: not a file or folder; pass a path on this machine, or the URL of tar shards or Parquet, because "
            "nothing else is downloaded or executed"
        )
    if "{" in path:
        return [file for name in expand_braces(path) for file in _files(name)[0] or [Path(name)]], None
    found = [Path(name) for name in sorted(glob(path))]  # noqa: PTH207 (an absolute pattern)
    if found or "#" not in path:
        return found, None
    path, _, split = path.rpartition("#")
    return [Path(path)] if Path(path).is_file() else [], split


def _open_one(path: Path, split: str | None, needs_captions: bool = True, needs_images: bool = True) -> PairSource:
    if path.is_dir():
        return _open_folder(path, needs_images)
    if path.name == PAIRS and is_feature_folder(path.parent):
        return FeaturePairs(path.parent, has_images=True)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _open_json(path, split, needs_captions, needs_images)
    if split is not None:
        raise UserError(f"{path}: has no splits, which only Karpathy's JSON files have; omit #{split} after the path")
    if path.name == "captions.txt":
        return _open_roco(path)
    if suffix == ".token":
        return _open_flickr_tokens(path)
    if suffix not in _READERS:
        known = ", ".join([".tar", ".json", *_READERS, ".token"])
        raise UserError(f"{path}: unsupported format; use {known}, or a folder")
    return _READERS[suffix](path, needs_captions, needs_images)


def _open_folder(folder: Path, needs_images: bool = True) -> PairSource:
    if is_feature_folder(folder):
        return FeaturePairs(folder)
    shards = shards_of(folder)
    if shards:
        return TarShards(shards)
    listing = next((folder / name for name in _LISTINGS if _is_listing(folder / name)), None)
    return ImageFolder(folder) if listing is None else _open_one(listing, None, needs_images=needs_images)


def _is_listing(path: Path) -> bool:
    # `captions.txt` may also be the caption of an image `captions.jpg`.
    return path.is_file() and (path.name != "captions.txt" or (path.parent / "images").is_dir())


def _format_siblings(path: Path) -> str:
    if path.is_relative_to(user_cache()) and not path.parent.is_dir():
        name = path.relative_to(user_cache()).parts[0]
        if name == _BUILT_IN_CACHE:
            return f"; in a clone of the repository, `python scripts/build_datasets {name}` builds it"
    siblings = sorted(entry.name for entry in path.parent.glob("*")) if path.parent.is_dir() else []
    return f"; {path.parent} has {', '.join(siblings[:8])}" if siblings else ""


# --- Annotations in a single JSON file


def _open_json(path: Path, split: str | None, needs_captions: bool = True, needs_images: bool = True) -> ListedPairs:
    """Open a JSON file. Its keys determine the format.

    Args:
        path: `captions_train2017.json`, `dataset_coco.json`, `dataset_flickr30k.json`, or a list of objects with the
            path of an image and its caption or captions.
        split: Split of Karpathy's files, such as `val`, or several joined splits, such as `train+restval`, which are
            usually combined for training.
        needs_captions: Whether a list of objects must have captions.
        needs_images: Whether the images must exist.

    Raises:
        UserError: If the file is in none of these formats, if it has no such split, or if its images do not exist.
    """
    content = _read(path)
    fields: Iterator[dict[str, Any]] | None = None
    try:
        if isinstance(content, dict) and "annotations" in content and "images" in content:
            rows, folders = _coco_rows(content), _coco_folders(path)
        elif isinstance(content, dict) and "images" in content:
            rows, folders = _karpathy_rows(content, path, split), _karpathy_folders(path)
            split = None
        elif isinstance(content, list) and content and isinstance(content[0], dict):
            image, caption = find_columns(list(content[0]), str(path), needs_captions)
            rows, folders = list(_object_rows(content, image, caption)), [path.parent, path.parent / "images"]
            fields = ({name: value for name, value in record.items() if name != image} for record in content)
        else:
            raise UserError(
                f"{path}: unknown JSON format; expected COCO's captions, Karpathy's splits, a list of "
                "objects or an Iconify icon set"
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: invalid content ({type(error).__name__}: {error}); correct the file") from error
    if split is not None:
        raise UserError(f"{path}: has no splits, which only Karpathy's JSON files have; omit #{split} after the path")
    stored = StoredRows(rows, fields)
    return ListedPairs(path, stored, locate_images(path, first_paths(stored), folders, needs_images))


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); correct it") from error


def _coco_rows(content: dict[str, Any]) -> list[ListedRow]:
    captions: dict[object, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        captions[annotation["image_id"]] += as_captions(annotation["caption"])
    return [ListedRow(str(image["file_name"]), tuple(captions[image["id"]])) for image in content["images"]]


def _coco_folders(path: Path) -> list[Path]:
    """Return folders that may contain the images of a COCO annotation file.

    The images of `annotations/captions_train2017.json` are in `train2017/`, next to `annotations/`.
    """
    part = path.stem.removeprefix("captions_")
    bases = [path.parent, path.parent.parent] if path.parent.name == "annotations" else [path.parent]
    return [base / inner for base in bases for inner in (part, f"images/{part}", "images", "")]


def _karpathy_rows(content: dict[str, Any], path: Path, split: str | None) -> list[ListedRow]:
    splits = sorted({str(image["split"]) for image in content["images"]})
    selected = _select_splits(path, split, splits)
    return [
        # Flickr's files have no `filepath`.
        ListedRow("/".join(filter(None, (image.get("filepath"), image["filename"]))), _sentences(image))
        for image in content["images"]
        if image["split"] in selected
    ]


def _select_splits(path: Path, split: str | None, splits: list[str]) -> set[str]:
    if split is None:
        if len(splits) == 1:
            return set(splits)
        # All splits together would put test images into training.
        raise UserError(f"{path}: contains the splits {', '.join(splits)}; choose one, such as {path.name}#{splits[0]}")
    for name in split.split("+"):
        if name not in splits:
            raise UserError(
                f"{path}: has no split '{name}'; {suggest_name(name, splits)}; the splits are {', '.join(splits)}, "
                f"and two of them are joined as {'+'.join(splits[:2])}"
            )
    return set(split.split("+"))


def _sentences(image: dict[str, Any]) -> tuple[str, ...]:
    return tuple(caption for sentence in image["sentences"] for caption in as_captions(sentence["raw"]))


def _karpathy_folders(path: Path) -> list[Path]:
    """Return folders that may contain the images of Karpathy's splits of COCO and Flickr30K.

    COCO's images are in `train2014/` and `val2014/`, which `filepath` specifies. The images of Flickr30K are in
    `flickr30k-images/`.
    """
    inner = ("", "images", "flickr30k-images", "flickr30k_images", "Images", "coco", "mscoco")
    return [base / name for base in (path.parent, path.parent.parent) for name in inner]


def _object_rows(content: list[Any], image: str, caption: str | None) -> Iterator[ListedRow]:
    for record in content:
        written = record.get(image)
        captions = () if caption is None else as_captions(record.get(caption))
        yield ListedRow(written if isinstance(written, str) else "", captions)


# --- Text listings of two datasets


def _open_flickr_tokens(path: Path) -> ListedPairs:
    """Open Flickr30K's `results_20130124.token`.

    Each line consists of a name such as `1000092795.jpg#0`, a tab and a caption. Each image has five captions. The
    images are in `flickr30k-images`.
    """
    captions: dict[str, list[str]] = {}
    for number, image, caption in _tabbed_lines(path):
        name, sharp, _ = image.rpartition("#")
        if not sharp:
            raise UserError(f"{path}: line {number}: expected IMAGE.jpg#NUMBER, a tab and a caption")
        captions.setdefault(name, []).append(caption)
    rows = StoredRows(ListedRow(name, tuple(texts)) for name, texts in captions.items())
    inner = ("flickr30k-images", "flickr30k_images", "images", "Images", "")
    folders = [base / name for base in (path.parent, path.parent.parent) for name in inner]
    return ListedPairs(path, rows, locate_images(path, first_paths(rows), folders))


def _open_roco(path: Path) -> ListedPairs:
    """Open the `captions.txt` of ROCO v1.

    Each line consists of an id such as `ROCO_00020`, a tab and a caption. The images are in `images/` next to this
    file.

    The file name of an image is the id. The dataset's older download script used other names, which are listed in
    `licences.txt` next to the captions.
    """
    listed = [(identity, caption) for _, identity, caption in _tabbed_lines(path)]
    names = _file_names(path.parent)
    folders = [path.parent / "images", path.parent]
    rows = StoredRows(ListedRow(identity, (caption,)) for identity, caption in listed)
    try:
        return ListedPairs(path, rows, locate_images(path, first_paths(rows), folders))
    except UserError:
        if not names:
            raise
    rows = StoredRows(ListedRow(names.get(identity, identity), (caption,)) for identity, caption in listed)
    return ListedPairs(path, rows, locate_images(path, first_paths(rows), folders))


def _file_names(folder: Path) -> dict[str, str]:
    """Return the file name for each id. Ids and names are the first columns of `licences.txt`: `ROCO_ID,PMC_ID`."""
    path = folder / "licences.txt"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {cells[0]: cells[1] for cells in csv.reader(lines) if len(cells) > 1}


def _tabbed_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the number (from 1) and the two cells of each line of a file. Blank lines are skipped.

    Raises:
        UserError: If the file is not UTF-8, or a line has no tab.
    """
    text = decode_text(path.read_bytes(), str(path))
    for number, line in enumerate(text.split("\n"), start=1):
        first, tab, second = line.rstrip("\r").partition("\t")
        if tab:
            yield number, first.strip(), second
        elif first.strip():
            raise UserError(f"{path}: line {number}: expected a name, a tab and a caption")
