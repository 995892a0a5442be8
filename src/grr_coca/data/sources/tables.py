"""Line-based tables with a column of image paths and a column of captions: CSV, TSV and JSON lines.

Of each row, only the offset is kept in memory.
"""

import csv
import io
import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.files import HandleCache, LocalFile, raise_open_file_limit
from grr_coca.data.sources.base import BadSample, Cause, require_max_bytes
from grr_coca.data.sources.columns import as_captions, find_columns
from grr_coca.data.sources.listed import ImageFiles, ListedPairs, ListedRow, first_paths, locate_images, without_suffix
from grr_coca.data.tokenizer import decode_text

_CHUNK_BYTES = 2**24
_MAX_ROW = 2**24
_MAX_OPEN_TABLES = 64
"""Maximum number of tables that a process keeps open for all its sources. A pattern can join thousands of tables."""

_NUMBERS = count()
_READ_LOCK = Lock()
"""Lock for reading a table, so that no thread closes a table that another thread is reading."""

_Quoting = Literal[0, 3]
"""Quoting mode of the CSV reader: `csv.QUOTE_MINIMAL`, or `csv.QUOTE_NONE` if quotes are ordinary characters."""

# The default limit of the `csv` module is 131,072 characters per cell. The limit applies to the entire process.
csv.field_size_limit(max(csv.field_size_limit(), _MAX_ROW))

_DELIMITERS = (",", "\t", ";", "|")
_RETURN_IN_LINE = re.compile(r"\r(?!\n)")
"""Pattern of a carriage return within a line, at which `csv` would end the row. Captions from the web contain it."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


Parsed = TypeVar("Parsed")


def open_json_lines(path: Path, needs_captions: bool = True, needs_images: bool = True) -> ListedPairs:
    """Open a file of JSON lines. Each line is an object with an image path and a caption or a list of captions.

    Args:
        path: Path of the file.
        needs_captions: Whether the objects must have captions. If False, captions are not read.
        needs_images: Whether at least one of the first images must exist.

    Raises:
        UserError: If the first rows have no column of paths or captions, or their images are not found.
        OSError: If the file cannot be read, which `open_source` converts.
    """
    starts = _line_starts(path, _byte_order_mark_size(path))
    first = _LineRows(path, starts, _JsonParser(None, None))
    names = next(filter(None, (_column_names(first, index) for index in range(min(len(first), 50)))), [])
    image, caption = find_columns(names, str(path), needs_captions)
    rows = _LineRows(path, starts, _JsonParser(image, caption))
    folders = [path.parent, path.parent / "images"]
    return ListedPairs(path, rows, locate_images(path, first_paths(rows), folders, needs_images))


def open_delimited(path: Path, needs_captions: bool = True, needs_images: bool = True) -> ListedPairs:
    """Open a CSV or TSV file that starts with a line of column names.

    If this line is missing, the file must have two columns: paths and captions.

    Args:
        path: Path of the file. If the suffix is `.tsv`, cells are separated by tabs. Otherwise, the delimiter is the
            comma, tab, semicolon or vertical bar that occurs most often in the first line.
        needs_captions: Whether the table must have a caption column. If False, captions are not read.
        needs_images: Whether at least one of the first images must exist.

    Raises:
        UserError: If the first line cannot be read, a column is missing, a quote is not closed, or the images of the
            first rows are not found.
        OSError: If the file cannot be read, which `open_source` converts.
    """
    with path.open("rb") as file:
        header = file.readline(_MAX_ROW)
    text = decode_text(header.removeprefix(_BYTE_ORDER_MARK), f"{path}: first line").rstrip("\r\n")
    delimiter = _delimiter(text, path)
    quoting: _Quoting = csv.QUOTE_NONE if delimiter == "\t" and not text.startswith('"') else csv.QUOTE_MINIMAL
    try:
        cells = next(csv.reader([text], delimiter=delimiter, quoting=quoting), [])
    except csv.Error as error:
        reason = "lines end with only a carriage return, not with a line feed" if "\r" in text else str(error)
        raise UserError(f"{path}: column names in the first line cannot be read ({reason}); correct them") from error
    if len(cells) == 2 and without_suffix(cells[0]) != cells[0]:
        names, start = ["image", "caption"], _byte_order_mark_size(path)
    else:
        names, start = cells, len(header)
    image, caption = find_columns(names, str(path), needs_captions)
    columns = names.index(image), None if caption is None else names.index(caption)
    starts = _line_starts(path, start) if quoting == csv.QUOTE_NONE else _csv_starts(path, start, delimiter)
    rows = _LineRows(path, starts, _DelimitedParser(names, columns, delimiter, quoting))
    return ListedPairs(path, rows, _find_table_images(path, rows, needs_images))


# --- Rows of a line-based file


class _LineRows:
    """Rows of a file. Each row is read on demand, at its offset.

    Args:
        path: Path of the file.
        starts: Offset of each row, followed by the end of the last row.
        parser: Parser of rows. If the text of a row is invalid, its error becomes a `BadSample` that names the row.
    """

    def __init__(self, path: Path, starts: np.ndarray, parser: "_JsonParser | _DelimitedParser") -> None:
        self._path = path
        self._starts = starts
        self._parser = parser
        self._table = next(_NUMBERS), path

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> ListedRow:
        """Read one row."""
        return self._parse_row(index, self._parser)

    def fields(self, index: int) -> Mapping[str, object]:
        """Return the columns of a row except the path, by name."""
        return self._parse_row(index, self._parser.fields)

    def _parse_row(self, index: int, parse: Callable[[str], Parsed]) -> Parsed:
        name = f"{self._path}: row {index + 1}"
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        require_max_bytes(end - start, _MAX_ROW, name)
        text = decode_text(_read_part(self._table, start, end - start, name), name)
        try:
            return parse(text)
        except (ValueError, IndexError, csv.Error, RecursionError) as error:
            raise BadSample(
                f"{name}: not a row of the table ({error}); correct or remove it", Cause.BAD_RECORD
            ) from error

    def __reduce__(self) -> tuple[object, ...]:
        # `_table` is not sent to the other process, because that process assigns a new number.
        return _LineRows, (self._path, self._starts, self._parser)


@cache
def _open_tables() -> HandleCache[tuple[int, Path], LocalFile]:
    """Return this process's cache of open table files, by the number of the reader and the path.

    The file at a path may be replaced. The number distinguishes the new file from the old one.
    """
    return HandleCache(
        lambda table: LocalFile(table[1]), LocalFile.close, min(_MAX_OPEN_TABLES, raise_open_file_limit() // 8)
    )


def _read_part(table: tuple[int, Path], start: int, size: int, name: str) -> bytes:
    """Read a part of a table.

    Raises:
        BadSample: If the table can no longer be read.
    """
    try:
        with _READ_LOCK:
            content = _open_tables()[table].read(start, size)
    except OSError as error:
        raise BadSample(f"{name}: cannot be read ({error.strerror})", Cause.UNREADABLE) from error
    if len(content) != size:
        raise BadSample(f"{name}: the table is shorter than before; do not change it during a run", Cause.UNREADABLE)
    return content


class _JsonParser:
    """Parser of rows that are JSON objects."""

    def __init__(self, image: str | None, caption: str | None) -> None:
        self._image, self._caption = image, caption

    def __call__(self, text: str) -> ListedRow:
        """Return the path and the captions of the object. The path is empty if it is missing or not a string.

        Raises:
            ValueError: If the text is not a JSON object.
        """
        record = _object(text)
        image = record.get(self._image)
        return ListedRow(image if isinstance(image, str) else "", as_captions(record.get(self._caption)))

    def fields(self, text: str) -> Mapping[str, object]:
        """Return all fields of the object except the path."""
        return {str(name): value for name, value in _object(text).items() if name != self._image}


def _object(text: str) -> dict[str | None, object]:
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


class _DelimitedParser:
    """Parser of rows that consist of cells between delimiters.

    Args:
        names: Names of the columns.
        columns: Indices of the image and caption columns. The second index is None if the table has no captions.
        delimiter: Character between cells.
        quoting: Quoting mode of the CSV reader.
    """

    def __init__(
        self, names: Sequence[str], columns: tuple[int, int | None], delimiter: str, quoting: _Quoting
    ) -> None:
        self._names = tuple(names)
        self._image, self._caption = columns
        self._delimiter = delimiter
        self._quoting = quoting

    def __call__(self, text: str) -> ListedRow:
        """Return the path and the caption of the row.

        Raises:
            ValueError: If the row has too few cells, or more cells than the table has columns.
        """
        cells = self._cells(text)
        if len(cells) <= max(self._image, self._caption or 0):
            raise ValueError(f"expected {len(self._names)} cells, found {len(cells)}")
        if self._caption is not None and any(cells[len(self._names) :]):  # the caption contains delimiters
            hint = "remove the tab" if self._delimiter == "\t" else f"put cells with '{self._delimiter}' in quotes"
            raise ValueError(f"{len(cells)} cells for {len(self._names)} columns; {hint}")
        return ListedRow(cells[self._image].strip(), () if self._caption is None else (cells[self._caption],))

    def fields(self, text: str) -> Mapping[str, object]:
        """Return all cells of the row except the path, by column name."""
        named = zip(self._names, self._cells(text), strict=False)
        return {name: cell for column, (name, cell) in enumerate(named) if column != self._image}

    def _cells(self, text: str) -> list[str]:
        lines = io.StringIO(_RETURN_IN_LINE.sub(" ", text), newline="")
        return next(csv.reader(lines, delimiter=self._delimiter, quoting=self._quoting), [])


def _line_starts(path: Path, start: int) -> np.ndarray:
    """Return the offsets of the lines from `start` on, and of the end of the file.

    Empty lines belong to the row before them.
    """
    pieces = [np.array([start], dtype=np.int64)]
    with path.open("rb") as file:
        file.seek(start)
        offset = start
        while chunk := file.read(_CHUNK_BYTES):
            found = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            pieces.append(found + offset + 1)
            offset += len(chunk)
        starts = np.concatenate(pieces)
        starts = starts if starts[-1] == offset else np.append(starts, offset)
        lengths = np.diff(starts)
        is_row = lengths > len(b"\r\n")
        for line in np.flatnonzero(~is_row):  # a short line is empty, or has one or two characters
            file.seek(starts[line])
            is_row[line] = bool(file.read(lengths[line]).strip())
    return np.append(starts[:-1][is_row], starts[-1])


def _csv_starts(path: Path, start: int, delimiter: str) -> np.ndarray:
    """Return the offsets of the rows of a CSV file, and of its end. A quoted cell may contain line ends.

    Raises:
        UserError: If a quote is not closed, or a cell is too long.
    """
    if not _has_quotes(path):
        return _line_starts(path, start)
    offset = start

    def lines() -> Iterator[str]:
        nonlocal offset
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                offset += len(line)
                yield _to_latin(line)

    starts = array("q", [start])
    try:
        for cells in csv.reader(lines(), delimiter=delimiter):
            if cells:
                starts.append(offset)
            else:
                starts[-1] = offset
    except csv.Error as error:
        reason = f"a cell of more than {_MAX_ROW:,} characters; make it shorter, or close its quote"
        raise UserError(f"{path}: row {len(starts)}: {reason}") from error
    _require_closed_quote(path, starts, delimiter)
    return np.array(starts, dtype=np.int64)


def _to_latin(line: bytes) -> str:
    """Convert a line in any encoding to a text that `csv` splits into the same cells. Only the cells' content differs.

    Carriage returns within the line become spaces.
    """
    return _RETURN_IN_LINE.sub(" ", line.decode("latin-1"))


def _require_closed_quote(path: Path, starts: Sequence[int], delimiter: str) -> None:
    """Check that the last quote is closed. Otherwise, all following rows would become one row.

    Raises:
        UserError: If the last quote is not closed.
    """
    row = max(len(starts) - 1, 1)
    with path.open("rb") as file:
        file.seek(starts[row - 1])
        try:
            for _ in csv.reader(map(_to_latin, file), delimiter=delimiter, strict=True):
                pass
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(f"{path}: row {row}: a quote is not closed; add the closing quote") from error


def _has_quotes(path: Path) -> bool:
    with path.open("rb") as file:
        return any(b'"' in chunk for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))


def _delimiter(header: str, path: Path) -> str:
    """Return a tab if the suffix is `.tsv`, otherwise the delimiter that occurs most often in the first line."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(_DELIMITERS, key=header.count)


def _find_table_images(path: Path, rows: _LineRows, needs_images: bool) -> ImageFiles:
    """Find the images of a table. They are next to the table or in a subfolder.

    The subfolder is `images/` or, for a table `train.csv` or `train_captions.csv` (ROCO v2), `train/`, `train_images/`,
    `train_images/train/` or `images/train/`.

    Raises:
        UserError: If no images are found; see `locate_images`.
    """
    root, part = path.parent, path.stem.removesuffix("_captions")
    folders = [root, root / "images", root / part, root / f"{part}_images", root / f"{part}_images" / part]
    return locate_images(path, first_paths(rows), [*folders, root / "images" / part], needs_images)


def _column_names(rows: _LineRows, index: int) -> list[str]:
    try:
        return list(rows.fields(index))
    except BadSample:
        return []


def _byte_order_mark_size(path: Path) -> int:
    with path.open("rb") as file:
        return len(_BYTE_ORDER_MARK) if file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK else 0
