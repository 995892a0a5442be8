"""Parquet tables. The columns of paths and captions are kept in memory, in Arrow's compact form.

Tables whose rows are lines: CSV, TSV and JSON lines. Only the offset of each row is kept in memory.
"""

import csv
import io
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar

import numpy as np

from grr_coca.data.bad import BadSample, Cause
from grr_coca.data.sources.base import as_captions, find_columns
from grr_coca.data.sources.listed import ImageFiles, ListedPairs, ListedRow, first_paths, locate_images, without_suffix
from grr_coca.data.sources.shards import Recent, allow_open_files
from grr_coca.data.text import decode_text
from grr_coca.errors import UserError
from grr_coca.extras import require_extra

CHUNK = 2**24
MAX_ROW = 2**24
MAX_OPEN_TABLES = 64
"""Tables that a process keeps open, those of all its sources together. A pattern may join thousands."""

_NUMBERS = count()
_READING = Lock()
"""Held while a table is read. Images are read by several threads, and none may close what another is reading."""

Quoting = Literal[0, 3]
"""`csv.QUOTE_MINIMAL`, or `csv.QUOTE_NONE` if quotes are ordinary characters."""

csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))  # its own is 131,072 characters, and for the whole process

DELIMITERS = (",", "\t", ";", "|")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


Parsed = TypeVar("Parsed")


class LineRows:
    """The rows of a file. Each row is read when it is asked for.

    Args:
        path: the file.
        starts: offset of each row, and of the end of the last.
        parse: a row from its text; raises ValueError where it is broken.
        parse_fields: the other columns of a row from its text, as `parse`.
    """

    def __init__(
        self,
        path: Path,
        starts: np.ndarray,
        parse: Callable[[str], ListedRow],
        parse_fields: Callable[[str], Mapping[str, object]],
    ) -> None:
        self._path = path
        self._starts = starts
        self._parse = parse
        self._parse_fields = parse_fields
        self._table = next(_NUMBERS), path

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> ListedRow:
        """One row."""
        return self._parsed(index, self._parse)

    def fields(self, index: int) -> Mapping[str, object]:
        """The other columns of a row by name."""
        return self._parsed(index, self._parse_fields)

    def _parsed(self, index: int, parse: Callable[[str], Parsed]) -> Parsed:
        name = f"{self._path}: row {index + 1}"
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        if end - start > MAX_ROW:
            raise BadSample(f"{name}: a row of {end - start:,} bytes", Cause.TOO_LARGE)
        text = decode_text(_read_part(self._table, start, end - start, name), name)
        try:
            return parse(text)
        except (ValueError, IndexError, csv.Error, RecursionError) as error:
            raise BadSample(f"{name}: not a row of the table ({error})", Cause.BAD_RECORD) from error

    def __reduce__(self) -> tuple[object, ...]:
        return LineRows, (self._path, self._starts, self._parse, self._parse_fields)  # with a number of that process


@cache
def _open_tables() -> Recent[tuple[int, Path], int]:
    """The tables that this process has open, by the number of their rows' reader: a file that was replaced since is
    another one under the same path."""
    return Recent(lambda table: os.open(table[1], os.O_RDONLY), os.close, min(MAX_OPEN_TABLES, allow_open_files() // 8))


def _read_part(table: tuple[int, Path], start: int, size: int, name: str) -> bytes:
    """A part of a table.

    Raises:
        BadSample: the table cannot be read any more.
    """
    try:
        with _READING:
            content = os.pread(_open_tables()[table], size, start)
    except OSError as error:
        raise BadSample(f"{name}: cannot be read ({error.strerror})", Cause.UNREADABLE) from error
    if len(content) != size:
        raise BadSample(f"{name}: the table has become shorter", Cause.UNREADABLE)
    return content


def open_json_lines(path: Path, needs_captions: bool = True) -> ListedPairs:
    """JSON lines: one object per line, with the path of an image and a caption or a list of captions."""
    starts = line_starts(path, _mark_size(path))
    first = LineRows(path, starts, lambda text: ListedRow(text, ()), lambda _: {})
    names = next(filter(None, (_keys(first, index) for index in range(min(len(first), 50)))), [])
    image, caption = find_columns(names, str(path), needs_captions)
    parser = JsonParser(image, caption)
    rows = LineRows(path, starts, parser, parser.fields)
    return ListedPairs(path, rows, locate_images(path, first_paths(rows), [path.parent, path.parent / "images"]))


def open_delimited(path: Path, needs_captions: bool = True) -> ListedPairs:
    """A table with a line of column names. Without one, the table must have two columns: paths and captions."""
    with path.open("rb") as file:
        header = file.readline(MAX_ROW)
    text = decode_text(header.removeprefix(BYTE_ORDER_MARK), f"{path}: first line").rstrip("\r\n")
    delimiter = _delimiter(text, path)
    quoting: Quoting = csv.QUOTE_NONE if delimiter == "\t" and not text.startswith('"') else csv.QUOTE_MINIMAL
    try:
        cells = next(csv.reader([text], delimiter=delimiter, quoting=quoting), [])
    except csv.Error as error:  # as of a file whose lines end with a carriage return alone
        raise UserError(f"{path}: its first line cannot be read ({error})") from error
    if len(cells) == 2 and without_suffix(cells[0]) != cells[0]:
        names, start = ["image", "caption"], _mark_size(path)
    else:
        names, start = cells, len(header)
    image, caption = find_columns(names, str(path), needs_captions)
    columns = names.index(image), None if caption is None else names.index(caption)
    starts = line_starts(path, start) if quoting == csv.QUOTE_NONE else csv_starts(path, start, delimiter)
    parser = DelimitedParser(names, columns, delimiter, quoting)
    rows = LineRows(path, starts, parser, parser.fields)
    return ListedPairs(path, rows, _find_table_images(path, rows))


class JsonParser:
    """Makes a row from a JSON object."""

    def __init__(self, image: str, caption: str | None) -> None:
        self._image, self._caption = image, caption

    def __call__(self, text: str) -> ListedRow:
        """The two fields of the object."""
        record = _object(text)
        image = record.get(self._image)
        caption = None if self._caption is None else record.get(self._caption)
        return ListedRow(image if isinstance(image, str) else "", as_captions(caption))

    def fields(self, text: str) -> Mapping[str, object]:
        """All fields of the object but the image's."""
        return {name: value for name, value in _object(text).items() if name != self._image}


def _object(text: str) -> dict[str, object]:
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("no object")
    return record


class DelimitedParser:
    """A row from cells between delimiters.

    Args:
        names: of the columns.
        columns: the numbers of the image's and the caption's column; None: there are no captions.
        delimiter: what stands between cells.
        quoting: what quotes mean.
    """

    def __init__(self, names: Sequence[str], columns: tuple[int, int | None], delimiter: str, quoting: Quoting) -> None:
        self._names = tuple(names)
        self._image, self._caption = columns
        self._delimiter = delimiter
        self._quoting = quoting

    def __call__(self, text: str) -> ListedRow:
        """The two cells of the row."""
        cells = self._cells(text)
        if len(cells) <= max(self._image, self._caption or 0):
            raise ValueError(f"{len(cells)} cells")
        return ListedRow(cells[self._image].strip(), () if self._caption is None else (cells[self._caption],))

    def fields(self, text: str) -> Mapping[str, object]:
        """The cells of the row by column, but the image's."""
        named = zip(self._names, self._cells(text), strict=False)
        return {name: cell for column, (name, cell) in enumerate(named) if column != self._image}

    def _cells(self, text: str) -> list[str]:
        lines = io.StringIO(text, newline="")
        return next(csv.reader(lines, delimiter=self._delimiter, quoting=self._quoting), [])


def line_starts(path: Path, start: int) -> np.ndarray:
    """Offsets of the lines from `start` on, and of the end of the file. Empty lines belong to the row before."""
    pieces = [np.array([start], dtype=np.int64)]
    with path.open("rb") as file:
        file.seek(start)
        offset = start
        while chunk := file.read(CHUNK):
            found = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            pieces.append(found + offset + 1)
            offset += len(chunk)
    starts = np.concatenate(pieces)
    starts = starts if starts[-1] == offset else np.append(starts, offset)
    return np.append(starts[:-1][np.diff(starts) > len(b"\r\n")], starts[-1])


def csv_starts(path: Path, start: int, delimiter: str) -> np.ndarray:
    """Offsets of the rows of a CSV file. A quoted cell may contain line ends.

    Raises:
        UserError: a quote is opened and not closed, or a row cannot be split into cells.
    """
    if not _has_quotes(path):
        return line_starts(path, start)
    offset = start

    def lines() -> Iterator[str]:
        nonlocal offset
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                offset += len(line)
                yield line.decode("latin-1")  # any encoding will do: only quotes and delimiters matter here

    starts = array("q", [start])
    try:
        for cells in csv.reader(lines(), delimiter=delimiter):
            if cells:
                starts.append(offset)
            else:
                starts[-1] = offset
    except csv.Error as error:
        what = f"cannot be split into cells ({error})"
        if "field larger than" in str(error):
            what = f"a cell of more than {MAX_ROW:,} characters; make it shorter, or close its quote"
        raise UserError(f"{path}: row {len(starts)}: {what}") from error
    _require_closed_quote(path, starts, delimiter)
    return np.array(starts, dtype=np.int64)


def _require_closed_quote(path: Path, starts: Sequence[int], delimiter: str) -> None:
    """A quote that is never closed takes all rows behind it into the last one; only a strict reader minds."""
    row = max(len(starts) - 1, 1)
    with path.open("rb") as file:
        file.seek(starts[row - 1])
        try:
            for _ in csv.reader((line.decode("latin-1") for line in file), delimiter=delimiter, strict=True):
                pass
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(f"{path}: row {row}: a quote is opened and not closed") from error


def _has_quotes(path: Path) -> bool:
    with path.open("rb") as file:
        return any(b'"' in chunk for chunk in iter(lambda: file.read(CHUNK), b""))


def _delimiter(header: str, path: Path) -> str:
    """A tab if the suffix is `.tsv`, else the delimiter that occurs most often in the first line."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(DELIMITERS, key=header.count)


def _find_table_images(path: Path, rows: LineRows) -> ImageFiles:
    """Images may lie beside the table, in `images`, or, as in ROCO v2 for `train_captions.csv`, in `train_images`."""
    root, part = path.parent, path.stem.removesuffix("_captions")
    folders = [root, root / "images", root / part, root / f"{part}_images", root / f"{part}_images" / part]
    return locate_images(path, first_paths(rows), [*folders, root / "images" / part])


def _keys(rows: LineRows, index: int) -> list[str]:
    try:
        record = json.loads(rows[index].path)
    except (ValueError, RecursionError):
        return []
    return list(record) if isinstance(record, dict) else []


def _mark_size(path: Path) -> int:
    with path.open("rb") as file:
        return len(BYTE_ORDER_MARK) if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0


class ParquetRows:
    """Rows of two Arrow columns, or of that of the images alone. The others are read when they are first asked for."""

    def __init__(self, path: Path, images: Any, captions: Any, others: Sequence[str]) -> None:
        self._path = path
        self._others = others
        self._images = images
        self._captions = captions

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ListedRow:
        """One row."""
        try:
            image = self._images[index].as_py()
            caption = None if self._captions is None else self._captions[index].as_py()
        except UnicodeDecodeError as error:
            message = f"{self._path}: row {index + 1}: not UTF-8 text ({error})"
            raise BadSample(message, Cause.BAD_TEXT) from error
        return ListedRow(image if isinstance(image, str) else "", as_captions(caption))

    def fields(self, index: int) -> Mapping[str, object]:
        """The other columns of a row by name, but for cells that Python has no value for."""
        cells = ((name, _value(column[index])) for name, column in self._columns.items())
        return {name: value for name, value in cells if value is not None}

    @cached_property
    def _columns(self) -> dict[str, Any]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self._path, columns=list(self._others))
        return {name: table[name] for name in self._others}


def _value(cell: Any) -> object:
    """What a cell holds; None if nothing does: a date of the year 100,000, or text that is not UTF-8."""
    import pyarrow

    try:
        return cell.as_py()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return None


def open_parquet(path: Path, needs_captions: bool = True) -> ListedPairs:
    """A Parquet table of paths and captions. A caption cell holds a text or a list of texts.

    Raises:
        UserError: pyarrow is not installed, the file is broken, a column is missing, or the table holds the images
            themselves.
    """
    require_extra("parquet", f"{path}: reading Parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = Counter(file.schema_arrow.names)
        image, caption = find_columns(list(names), str(path), needs_captions)
        for name in filter(None, (image, caption)):
            if names[name] > 1:
                raise UserError(f"{path}: has several columns '{name}'; rename all but one")
        kind = file.schema_arrow.field(image).type
        if pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind):  # as in data sets of Hugging Face
            raise UserError(f"{path}: '{image}' holds images, not paths; save them as files, and list these instead")
        table = file.read([image] if caption is None else [image, caption])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error})") from error
    others = [name for name, count in names.items() if name != image and count == 1]
    rows = ParquetRows(path, table[image], None if caption is None else table[caption], others)
    return ListedPairs(path, rows, locate_images(path, first_paths(rows), [path.parent, path.parent / "images"]))
