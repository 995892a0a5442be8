"""Text listings of two data sets: Flickr30K's token file and ROCO v1's captions."""

import csv
from collections.abc import Iterator
from pathlib import Path

from grr_coca.data.sources.listed import ListedPairs, ListedRow, StoredRows, first_paths
from grr_coca.data.sources.located import locate_images
from grr_coca.data.text import decode_text
from grr_coca.errors import UserError


def open_flickr_tokens(path: Path) -> ListedPairs:
    """Flickr30K's `results_20130124.token`. Each line is `1000092795.jpg#0`, a tab, and a caption; an image has five.

    The images lie in `flickr30k-images`.
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


def open_roco(path: Path) -> ListedPairs:
    """ROCO v1's `captions.txt`. Each line is `ROCO_00020`, a tab, and a caption. The images lie in `images/` beside it.

    The files are named by that id. Files that the data set's older download script wrote have other names, which
    `licences.txt` beside the captions lists.
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
    """The file name of each id, from `licences.txt`. Its first columns are `ROCO_ID,PMC_ID`."""
    path = folder / "licences.txt"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {cells[0]: cells[1] for cells in csv.reader(lines) if len(cells) > 1}


def _tabbed_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """The number of each line, and its two cells."""
    text = decode_text(path.read_bytes(), str(path))
    for number, line in enumerate(text.split("\n"), start=1):
        first, tab, second = line.rstrip("\r").partition("\t")
        if tab:
            yield number, first.strip(), second
        elif first.strip():
            raise UserError(f"{path}: line {number}: expected a name, a tab and a caption")
