"""Pairs named by a listing: a table or an annotation file beside folders of images."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from grr_coca.data.bad import BadSample, Cause
from grr_coca.data.sources.located import ImageFiles, read_image_file, without_suffix
from grr_coca.data.sources.pairs import RawPair
from grr_coca.data.sources.strings import Strings

NUM_PROBES = 50
"""Number of rows that are read to find out where the images lie. The first few images may be missing."""


class ListedRow(NamedTuple):
    """The path of an image, as the listing has it, and its captions."""

    path: str
    captions: tuple[str, ...]


class ListedRows(Protocol):
    """The rows of a listing."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ListedRow:
        """One row. Raises `BadSample` if it is broken."""
        ...

    def fields(self, index: int) -> Mapping[str, object]:
        """The other columns of a row by name, as far as the listing has them."""
        ...


class StoredRows:
    """Rows of a listing that has to be read as a whole, such as JSON; kept compactly.

    Args:
        rows: path and captions of each.
        fields: the other columns of each row; None: the format has none.
    """

    def __init__(self, rows: Iterable[ListedRow], fields: Iterable[Mapping[str, object]] | None = None) -> None:
        rows = list(rows)
        self._fields = None if fields is None else Strings(json.dumps(dict(record)) for record in fields)
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

    def fields(self, index: int) -> Mapping[str, object]:
        """The other columns of a row by name; the caption where the format has no others."""
        if self._fields is not None:
            return json.loads(self._fields[index])
        captions = self[index].captions
        return {"text": captions[0]} if captions else {}


class ListedPairs:
    """The pairs of a listing, in its order. Each row is a pair. Rows that name the same file belong to one image."""

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

    def image(self, index: int) -> bytes:
        """Read one image, whether it has a caption or not."""
        row = self._rows[index]
        name = self._name(index, row)
        if not row.path:
            raise BadSample(f"{name}: a row without an image", Cause.NO_IMAGE)
        return read_image_file(self.images.path(row.path, name), name)

    def caption(self, index: int) -> str:
        """Read the first caption of an image, without the image."""
        return self._row(index).captions[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of an image, without the image."""
        return self._row(index).captions

    def name(self, index: int) -> str:
        """The name of a pair in messages."""
        try:
            return self._name(index, self._rows[index])
        except BadSample:
            return f"{self.listing}: row {index + 1}"

    def image_name(self, index: int) -> str:
        """The path of the image, which is not read; the name of the pair where the row has none."""
        try:
            row = self._rows[index]
        except BadSample:
            return self.name(index)
        return self.images.name(row.path) if row.path else self._name(index, row)

    def place(self, index: int) -> str:  # noqa: ARG002 (the protocol has it)
        """The path of the listing."""
        return str(self.listing)

    def image_path(self, index: int) -> Path | None:
        """Where the image of a row lies, whether it is there or not; None where the row names no such place."""
        try:
            row = self._rows[index]
            return self.images.path(row.path, self._name(index, row)) if row.path else None
        except BadSample:
            return None

    def fields(self, index: int) -> Mapping[str, object]:
        """The columns of a row except the image's, by name.

        Raises:
            BadSample: the row is broken.
        """
        return self._rows.fields(index)

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
    """The paths in the first rows, to find out where the images lie.

    Raises:
        BadSample: none of these rows has a path; what is wrong with the first broken one.
    """
    broken, found = None, False
    for index in range(min(len(rows), NUM_PROBES)):
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
