"""Pairs that a listing names: a table or an annotation file beside folders of images."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from grr_coca.data.bad import BadSample, Cause
from grr_coca.data.sources.located import ImageFiles, read_image_file, without_suffix
from grr_coca.data.sources.pairs import RawPair
from grr_coca.data.sources.strings import Strings

NUM_PROBES = 50
"""Rows looked at to find out where the images lie: some of the first may be missing."""


class ListedRow(NamedTuple):
    """The path of an image, as written, and its captions."""

    path: str
    captions: tuple[str, ...]


class ListedRows(Protocol):
    """The content of a listing by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ListedRow:
        """One row; raises `BadSample` where it is broken."""
        ...


class StoredRows:
    """Rows of a listing that has to be read as a whole, such as JSON; kept compactly."""

    def __init__(self, rows: Iterable[ListedRow]) -> None:
        rows = list(rows)
        self._paths = Strings(row.path for row in rows)
        self._captions = Strings(caption for row in rows for caption in row.captions)
        self._ends = np.cumsum([len(row.captions) for row in rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> ListedRow:
        """One row."""
        start = int(self._ends[index - 1]) if index else 0
        captions = tuple(self._captions[caption] for caption in range(start, int(self._ends[index])))
        return ListedRow(self._paths[index], captions)


class ListedPairs:
    """Pairs in the order of their listing. A row is a pair; rows that name the same file are of the same image."""

    def __init__(self, listing: Path, rows: ListedRows, images: ImageFiles) -> None:
        self.listing = listing
        self.images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

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

    def caption(self, index: int) -> str:
        """Read one caption, the first, and not its image."""
        return self._row(index).captions[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of one image, and not the image."""
        return self._row(index).captions

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        try:
            return self._name(index, self._rows[index])
        except BadSample:
            return f"{self.listing}: row {index + 1}"

    def place(self, index: int) -> str:  # noqa: ARG002 (the protocol's)
        """The listing."""
        return str(self.listing)

    def _row(self, index: int) -> ListedRow:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._rows[index]
        if not row.captions:
            raise BadSample(f"{self._name(index, row)}: an image without a caption", Cause.NO_CAPTION)
        if not row.path:
            raise BadSample(f"{self._name(index, row)}: a caption without an image", Cause.NO_IMAGE)
        return row

    def _name(self, index: int, row: ListedRow) -> str:
        return f"{self.listing}: row {index + 1}, {row.path}"


def first_paths(rows: ListedRows) -> Iterator[str]:
    """The paths of the first rows, to find out where the images lie."""
    for index in range(min(len(rows), NUM_PROBES)):
        try:
            path = rows[index].path
        except BadSample:
            continue
        if path:
            yield path
