"""Pairs from a listing, which is a table or annotation file with image paths and captions.

Paths outside the image folder are rejected. Nothing is downloaded or executed.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.data.sources.base import BadSample, Cause, PackedStrings, PairSource, RawPair, digest_file, digest_header
from grr_coca.data.sources.folder import read_image_file
from grr_coca.data.walk import has_image_suffix

_ADDED_SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".webp")
"""Suffixes that may be missing from the paths in a listing. For example, ROCO lists only ids."""

SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
"""Pattern of the start of a URL, such as `https:`, `s3:` or `pipe:`. A single letter before the colon does not match,
because it is a Windows drive."""

_NUM_PROBES = 50
"""Maximum number of rows whose paths are used to find the image folder. A single row is not enough, because its image
may be missing."""


class ListedRow(NamedTuple):
    """Row of a listing: the path of an image as written in the listing, and the captions of the image."""

    path: str
    captions: tuple[str, ...]


class ListedRows(Protocol):
    """Rows of a listing, each with the path and the captions of an image and possibly other columns."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ListedRow:
        """Read one row.

        Raises:
            BadSample: If the row is invalid.
        """
        ...

    def fields(self, index: int) -> Mapping[str, object]:
        """Return the columns of a row except the image path, by name."""
        ...


class StoredRows:
    """Compactly stored rows of a listing in a format that must be read completely, such as JSON.

    Args:
        rows: Path and captions of each row.
        fields: The other columns of each row. None if the format has no other columns.
    """

    def __init__(self, rows: Iterable[ListedRow], fields: Iterable[Mapping[str, object]] | None = None) -> None:
        rows = list(rows)
        self._fields = None if fields is None else PackedStrings(json.dumps(dict(record)) for record in fields)
        self._paths = PackedStrings(row.path for row in rows)
        self._captions = PackedStrings(caption for row in rows for caption in row.captions)
        self._ends = np.cumsum([len(row.captions) for row in rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> ListedRow:
        """Read one row."""
        start = int(self._ends[index - 1]) if index else 0
        captions = tuple(self._captions[caption] for caption in range(start, int(self._ends[index])))
        return ListedRow(self._paths[index], captions)

    def fields(self, index: int) -> Mapping[str, object]:
        """Return the columns of a row except the path, by name.

        If the format has no columns, the first caption is returned as the column `text`.
        """
        if self._fields is not None:
            return json.loads(self._fields[index])
        captions = self[index].captions
        return {"text": captions[0]} if captions else {}


class ImageFiles(NamedTuple):
    """Base folder of the relative paths in a listing, and the suffix to append to these paths."""

    folder: Path
    suffix: str = ""

    def name(self, written: str) -> str:
        """Return the full, normalized path of a file as text. It is the same for `a/../b.jpg` and `b.jpg`.

        The file is not opened.
        """
        # pathlib would take several times as long, and a run may need the names of millions of rows.
        return os.path.normpath(os.path.join(self.folder, written + self.suffix))  # noqa: PTH118

    def path(self, written: str, name: str) -> Path:
        """Return the full path of a file.

        Raises:
            BadSample: If the path leads out of the folder, or is a URL.
        """
        if "\0" in written or (SCHEME.match(written) and not _is_file(Path(self.name(written)))):
            message = (
                f"{name}: not the path of a file; nothing is downloaded or executed, so download it first (img2dataset)"
            )
            raise BadSample(message, Cause.FORBIDDEN_PATH)
        path = self.name(written)
        # `..` can be resolved only in absolute paths.
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.folder)):  # noqa: PTH100
            message = f"{name}: the path leaves {self.folder}; put the listing in the folder of the images"
            raise BadSample(message, Cause.FORBIDDEN_PATH)
        return Path(path)


class ListedPairs(PairSource):
    """Pairs of a listing, in the order of its rows. Each row is a pair. Rows with the same path share an image.

    Args:
        listing: Path of the listing.
        rows: Rows of the listing.
        images: Location of the images; see `locate_images`.
    """

    def __init__(self, listing: Path, rows: ListedRows, images: ImageFiles) -> None:
        self.listing = listing
        self.images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the number of rows, and the name and size of the listing."""
        yield digest_header(self)
        yield digest_file(self.listing)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        row = self._row(index)
        name = self._name(index, row)
        path = self.images.path(row.path, name)
        key = without_suffix(row.path)
        return RawPair(
            key,
            name,
            read_image_file(path, name),
            row.captions[0],
            more_captions=row.captions[1:],
            image_name=str(path),
        )

    def image(self, index: int) -> bytes:
        """Read the image of a row, even if the row has no caption.

        Raises:
            BadSample: If the row is invalid or has no path, or the image cannot be read.
        """
        row = self._rows[index]
        name = self._name(index, row)
        if not row.path:
            raise BadSample(f"{name}: the row has no image; add its path or remove the row", Cause.NO_IMAGE)
        return read_image_file(self.images.path(row.path, name), name)

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of a pair."""
        return self._row(index).captions

    def name(self, index: int) -> str:
        """Return the name of a pair, for messages."""
        try:
            return self._name(index, self._rows[index])
        except BadSample:
            return f"{self.listing}: row {index + 1}"

    def image_name(self, index: int) -> str:
        """Return the path of the image, or the name of the pair if the row has no path."""
        try:
            row = self._rows[index]
        except BadSample:
            return self.name(index)
        return self.images.name(row.path) if row.path else self._name(index, row)

    def container(self, index: int) -> str:  # noqa: ARG002 (the protocol has it)
        """Return the path of the listing."""
        return str(self.listing)

    def key(self, index: int) -> str:
        """Return the path of an image as written in the listing, without an image suffix. The image is not read.

        Raises:
            BadSample: If the row is invalid.
        """
        return without_suffix(self._rows[index].path)

    def image_path(self, index: int) -> Path | None:
        """Return the path of a row's image, or None if the row has no valid path. The file may not exist."""
        try:
            row = self._rows[index]
            return self.images.path(row.path, self._name(index, row)) if row.path else None
        except BadSample:
            return None

    def fields(self, index: int) -> Mapping[str, object]:
        """Return the columns of a row, by name, except the column of image paths.

        Raises:
            BadSample: If the row is invalid.
        """
        return self._rows.fields(index)

    def _row(self, index: int) -> ListedRow:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._rows[index]
        if not row.captions:
            raise BadSample(
                f"{self._name(index, row)}: the image has no caption; add one or remove the row", Cause.NO_CAPTION
            )
        if not row.path:
            raise BadSample(
                f"{self._name(index, row)}: the caption has no image; add its path or remove the row", Cause.NO_IMAGE
            )
        return row

    def _name(self, index: int, row: ListedRow) -> str:
        return f"{self.listing}: row {index + 1}, {row.path}"


def first_paths(rows: ListedRows) -> Iterator[str]:
    """Yield the paths in the first rows. `locate_images` uses them to find the image folder.

    Raises:
        BadSample: If none of these rows has a path, and a row is invalid. The error of the first invalid row is raised.
    """
    broken, found = None, False
    for index in range(min(len(rows), _NUM_PROBES)):
        try:
            path = rows[index].path
        except BadSample as error:
            broken = broken or error
            continue
        if path:
            found = True
            yield path
    if broken is not None and not found:
        raise broken


# --- Image files


def locate_images(
    listing: Path, written: Iterable[str], folders: Sequence[Path], needs_images: bool = True
) -> ImageFiles:
    """Find the image folder of a listing.

    Args:
        listing: Path of the listing, for messages.
        written: First paths in the listing. The first of these files that exists determines the folder.
        folders: Folders to search, in this order.
        needs_images: Whether the images must exist.

    Raises:
        UserError: If there are no paths, or if `needs_images` is True and none of the files exists or is in its folder.
            The message names the folders.
    """
    first, refused = None, None
    for text in written:
        first = first or text
        for folder in folders:
            for suffix in ("",) if has_image_suffix(text) else _ADDED_SUFFIXES:
                files = ImageFiles(folder, suffix)
                try:
                    if _is_file(files.path(text, f"{listing}: {text}")):
                        return files
                except BadSample as error:
                    refused = refused or error
    if first is None:
        raise UserError(f"{listing}: no pairs, because the first rows have no image path; correct the column of images")
    if not needs_images:
        return ImageFiles(folders[0])
    if refused is not None:
        raise UserError(str(refused))
    looked = ", ".join(str(folder) for folder in folders)
    raise UserError(f"{listing}: images such as {first} not found in {looked}; put them there, or correct the paths")


def without_suffix(written: str) -> str:
    """Remove the suffix of a path if it is an image suffix."""
    return written.rpartition(".")[0] if has_image_suffix(written) else written


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, for example
        return False
