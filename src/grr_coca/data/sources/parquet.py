"""Parquet tables of captions and images. The tables contain paths of image files or, as in Hugging Face datasets, the
bytes of images.

Paths and captions are kept in memory, in Arrow's compact form. Bytes of images are read by row group when needed, and
the most recently used row groups are cached.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from grr_coca.common.errors import UserError, require_extra
from grr_coca.data.images import MAX_BYTES
from grr_coca.data.sources.base import SCALE_DOWN, BadSample, Cause, RawPair, locate_part, require_max_bytes
from grr_coca.data.sources.columns import IMAGE_COLUMNS, as_captions, find_columns, first_column
from grr_coca.data.sources.listed import ImageFiles, ListedPairs, ListedRow, first_paths, locate_images, without_suffix

if TYPE_CHECKING:
    import pyarrow

_MAX_CACHED_BYTES = 2**29
"""Maximum total size, in bytes, of the row groups that a process caches for all its tables."""
_MAX_GROUP = 2**30
"""Maximum size, in bytes, of the images in a row group. Row groups are read completely, so they must fit into memory.
"""
_BYTES_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "picture", "photo")
"""Common names of columns with image bytes, in order of priority."""


def open_parquet(
    path: Path, needs_captions: bool = True, needs_images: bool = True, must_embed: bool = False
) -> ListedPairs:
    """Open a Parquet table of images and captions.

    The cells of the image column contain bytes, or structs of `bytes` and `path` as in Hugging Face datasets. If
    `must_embed` is False, they may also contain paths of image files. A caption cell contains a text or a list of
    texts.

    Args:
        path: Path of the file.
        needs_captions: Whether the table must have a caption column. If False, captions are not read.
        needs_images: Whether at least one of the first image files must exist.
        must_embed: Whether the table must contain the bytes of images.

    Raises:
        UserError: If pyarrow is not installed, the file is missing or corrupt, a column is missing, ambiguous or of a
            wrong type, a row group is too large, or image files are not found.
    """
    require_extra("parquet", f"{path}: reading Parquet")
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        inner = column_of_images(str(path), schema)
        if must_embed and inner is None:
            raise UserError(
                f"{path}: no column of image bytes, which a remote table needs, because image files are not fetched; "
                "write the images into the table, or copy the table and the images to this machine"
            )
        image, caption = find_columns(schema.names, str(path), needs_captions, inner)
        if caption is not None and not _holds_text(schema.field(caption).type):
            kind = schema.field(caption).type
            raise UserError(f"{path}: '{caption}' must have texts or lists of texts, got {kind}")
        selected = [name for name in (caption, None if inner else image) if name is not None]
        table = file.read(selected)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); write it again") from error
    names = Counter(schema.names)
    with_bytes = _bytes_columns(schema)
    others = [name for name, count in names.items() if name != image and name not in with_bytes and count == 1]
    captions = None if caption is None else table[caption]
    if inner is not None:
        groups = RowGroups(path, inner, file.metadata)
        return TableOfImages(path, _ParquetRows(path, None, captions, others, len(groups)), groups)
    rows = _ParquetRows(path, table[image], captions, others, len(table))
    folders = [path.parent, path.parent / "images"]
    return ListedPairs(path, rows, locate_images(path, first_paths(rows), folders, needs_images))


def group_sizes(metadata: Any) -> list[int]:
    """Return the number of rows in each row group, from the footer of a table."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def column_of_images(name: str, schema: "pyarrow.Schema") -> str | None:
    """Return the column that contains the image bytes, or None if the images are separate files.

    Args:
        name: Name of the table for messages.
        schema: Columns of the table.

    Raises:
        UserError: If several columns may contain the images.
    """
    from pyarrow import types

    with_bytes = _bytes_columns(schema)
    found = list(with_bytes)
    if (column := first_column(found, (*_BYTES_COLUMNS, *IMAGE_COLUMNS))) is not None:
        return found[column]
    structs = [column for column, kind in with_bytes.items() if types.is_struct(kind)]
    found = structs or ([] if first_column(schema.names, IMAGE_COLUMNS) is not None else found)
    if len(found) > 1:
        raise UserError(
            f"{name}: has several columns of bytes ({', '.join(found)}); rename the image column to 'image'"
        )
    return found[0] if found else None


def _bytes_columns(schema: "pyarrow.Schema") -> dict[str, Any]:
    """Return the types of the columns that contain bytes."""
    return {name: kind for name, kind in zip(schema.names, schema.types, strict=True) if _holds_bytes(kind)}


def _holds_bytes(kind: Any) -> bool:
    """Return whether the cells of a column with this type are bytes, or structs that contain bytes."""
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _holds_text(kind: Any) -> bool:
    """Return whether the cells of a column with this type are texts or lists of texts."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


class _ParquetRows:
    """Rows of a Parquet table. Each row has captions and, if the table contains paths, a path.

    The other columns are read when they are first used.
    """

    def __init__(self, path: Path, images: Any, captions: Any, others: Sequence[str], length: int) -> None:
        self._path = path
        self._images = images
        self._captions = captions
        self._others = others
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> ListedRow:
        """Read one row.

        Raises:
            BadSample: If a text is not UTF-8.
        """
        try:
            image = None if self._images is None else self._images[index].as_py()
            caption = None if self._captions is None else self._captions[index].as_py()
        except UnicodeDecodeError as error:
            message = f"{self._path}: row {index + 1}: not UTF-8 text ({error}); save it as UTF-8"
            raise BadSample(message, Cause.BAD_TEXT) from error
        return ListedRow(image if isinstance(image, str) else "", as_captions(caption))

    def fields(self, index: int) -> Mapping[str, object]:
        """Return the columns of a row except the image and columns of bytes, by name.

        Empty cells, and cells that Python cannot represent, are omitted. The first call reads these columns completely.
        """
        cells = ((name, _cell_value(column[index])) for name, column in self._columns.items())
        return {name: value for name, value in cells if value is not None}

    @cached_property
    def _columns(self) -> dict[str, Any]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self._path, columns=list(self._others))
        return {name: table[name] for name in self._others}


def _cell_value(cell: Any) -> object:
    """Return the value of a cell, or None if Python cannot represent the value.

    Python cannot represent, for example, a date in the year 100,000 or a text that is not UTF-8.
    """
    import pyarrow

    try:
        return cell.as_py()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return None


# --- Images in the table


class TableOfImages(ListedPairs):
    """Pairs of a table that contains the bytes of its images. Each row is an image."""

    def __init__(self, path: Path, rows: _ParquetRows, groups: "RowGroups") -> None:
        super().__init__(path, rows, ImageFiles(path.parent))
        self.groups = groups

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        captions, name = self.captions(index), self.name(index)
        image, path = self.groups.read(index, name)
        key = without_suffix(path) if path else str(index)
        return RawPair(key, name, image, captions[0], more_captions=captions[1:])

    def image(self, index: int) -> bytes:
        """Read the image of a row, even if the row has no caption."""
        return self.groups.read(index, self.name(index))[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of a row."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        captions = self._rows[index].captions
        if not captions:
            raise BadSample(
                f"{self.name(index)}: the image has no caption; add one or remove the row", Cause.NO_CAPTION
            )
        return captions

    def name(self, index: int) -> str:
        """Return the name of a pair, for messages."""
        return f"{self.listing}: row {index + 1}"

    def image_name(self, index: int) -> str:
        """Return the name of the pair."""
        return self.name(index)

    def image_path(self, index: int) -> None:  # noqa: ARG002 (a listing has it)
        """Return None, because no file contains the image unchanged."""
        return


class RowGroups:
    """Cells of a column of bytes, which are read by row group.

    Args:
        path: Path of the table.
        column: Name of the column.
        metadata: Footer of the table.

    Raises:
        UserError: If a row group is too large.
    """

    def __init__(self, path: Path, column: str, metadata: "pyarrow.parquet.FileMetaData") -> None:
        self._path = path
        self._column = column
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        largest = max((_size_of(group, column) for group in groups), default=0)
        if largest > _MAX_GROUP:
            raise UserError(
                f"{path}: a row group has {largest / 2**30:.1f} GiB of images, too many to "
                "read at once; write the table again with fewer rows in each, such as row_group_size=100"
            )
        self._ends = np.cumsum(group_sizes(metadata), dtype=np.int64)
        self._table = next(_NUMBERS), path, column

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: int, name: str) -> tuple[bytes, str]:
        """Read the bytes of an image and its path, which may be empty.

        Args:
            index: Index of the image's row.
            name: Name of the image in messages.

        Raises:
            BadSample: If the cell has no bytes or too many bytes, or the table can no longer be read.
        """
        group, row = locate_part(self._ends, index)
        with _READ_LOCK:
            return content_of(_cached_group(self._table, group, name)[row], name)

    def columns(self) -> "Iterator[pyarrow.ChunkedArray]":
        """Read the column by row group, without caching.

        Raises:
            BadSample: If the table can no longer be read.
        """
        for group in range(len(self._ends)):
            yield _read_group(self._table, group, f"{self._path}: row group {group}")

    def footer(self) -> bytes:
        """Return the footer of the table as a Parquet file without rows.

        The footer contains the schema and the locations of the row groups.
        """
        import pyarrow.parquet

        written = BytesIO()
        pyarrow.parquet.read_metadata(self._path).write_metadata_file(written)
        return written.getvalue()

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_table": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._table = next(_NUMBERS), self._path, self._column  # the receiving process assigns a new number


def content_of(cell: Any, name: str) -> tuple[bytes, str]:
    """Return the bytes of an image and its path, which may be empty.

    Raises:
        BadSample: If the cell has no bytes, or too many bytes. The message starts with `name`.
    """
    content, path = cell, ""
    if hasattr(cell, "keys"):  # the cell is a struct
        content, written = cell["bytes"], cell["path"].as_py() if "path" in cell.keys() else None  # noqa: SIM118
        path = written if isinstance(written, str) else ""
    size = len(content.as_buffer()) if content.is_valid else 0
    require_max_bytes(size, MAX_BYTES, name, SCALE_DOWN)
    if not size:
        hint = f"; the file {path} is not read" if path else ""
        raise BadSample(f"{name}: the row has no bytes of an image{hint}; add them or remove the row", Cause.NO_IMAGE)
    return content.as_py(), path


_Table = tuple[int, Path, str]
"""Number of a reader, path of its file, and name of its column. The number distinguishes a new file from an old file at
the same path."""
_NUMBERS = count()
_READ_LOCK = Lock()
"""Lock for reading a cell, so that no thread drops a row group that another thread is using."""


_GROUPS: OrderedDict[tuple[_Table, int], Any] = OrderedDict()
"""The most recently used row groups of all tables: at most `_MAX_CACHED_BYTES` bytes, but at least one group."""


def _cached_group(table: _Table, group: int, name: str) -> Any:
    """Return the cells of a row group, from the cache or from the file. The caller must hold `_READ_LOCK`.

    Raises:
        BadSample: If the table can no longer be read.
    """
    key = table, group
    if key not in _GROUPS:
        cells = _read_group(table, group, name)
        while _GROUPS and cells.nbytes + sum(cached.nbytes for cached in _GROUPS.values()) > _MAX_CACHED_BYTES:
            _GROUPS.popitem(last=False)
        _GROUPS[key] = cells
    _GROUPS.move_to_end(key)
    return _GROUPS[key]


def _read_group(table: _Table, group: int, name: str) -> Any:
    import pyarrow.parquet

    _, path, column = table
    try:
        return pyarrow.parquet.ParquetFile(path).read_row_group(group, [column])[column]
    except (pyarrow.ArrowException, OSError) as error:
        raise BadSample(f"{name}: cannot be read ({error})", Cause.UNREADABLE) from error


def _size_of(group: Any, column: str) -> int:
    """Return the uncompressed size, in bytes, of a column in a row group."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(one.total_uncompressed_size for one in columns if one.path_in_schema.split(".")[0] == column)
