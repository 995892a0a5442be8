"""Remote Parquet tables with image bytes. A table is read once to create an index, and then by row group.

`TarShards` treats such a table as a shard, that is, as a file that contains only the images of the table, each of which
starts at a multiple of 512 bytes. A block of this file contains the images of one row group, because Parquet compresses
each column of a row group separately.
"""

import io
import json
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.remote import RemoteFile
from grr_coca.data.sources.base import BadSample
from grr_coca.data.sources.block_cache import RemoteBlock
from grr_coca.data.sources.listed import without_suffix
from grr_coca.data.sources.parquet import TableOfImages, column_of_images, content_of, group_sizes, open_parquet
from grr_coca.data.sources.tar import CAUSES, ROW_DTYPE, ShardIndex

if TYPE_CHECKING:
    import pyarrow


def scan_table(path: Path) -> ShardIndex:
    """Index a local copy of a table. Bad rows are indexed with the cause of their error.

    Raises:
        UserError: If the file is not a readable Parquet file, has no column of captions, or has image paths instead of
            image bytes.
    """
    table = open_parquet(path, must_embed=True)
    assert isinstance(table, TableOfImages)
    rows, sums = np.zeros(len(table), ROW_DTYPE), np.zeros(len(table), "<u4")
    keys, texts, block, key_end, row = [], [], 0, 0, 0
    for column in table.groups.columns():
        for cell in column:
            image, written, cause = _image_of(cell)
            try:
                captions = table.captions(row)
            except BadSample as error:
                captions, cause = (), error.cause
            text = b"" if cause else json.dumps({"captions": captions}, ensure_ascii=False).encode()
            key = (without_suffix(written) if written else str(row)).encode("utf-8", "surrogateescape")
            key_end += len(key)
            code = 1 + CAUSES.index(cause) if cause else 0
            rows[row] = (block, len(image), 0, 0, 0, len(text), key_end, code)
            sums[row] = zlib.crc32(image)
            keys.append(key)
            texts.append(text)
            block += _num_blocks(len(image))
            row += 1
    return ShardIndex(rows, b"".join(keys), True, sums, b"".join(texts), footer=table.groups.footer())


def largest_row_group(footer: bytes | memoryview) -> int:
    """Return the number of rows in the largest row group of a table, from its footer, or 1 without row groups."""
    from pyarrow.parquet import read_metadata

    return max(group_sizes(read_metadata(io.BytesIO(footer))), default=1)


class RemoteTable:
    """Indexed remote table, from which the images of one row group are read at a time.

    Args:
        file: The table.
        index: Index of the table; see `scan_table`.
    """

    def __init__(self, file: RemoteFile, index: ShardIndex) -> None:
        import pyarrow.parquet

        self.file = file
        self._metadata = pyarrow.parquet.read_metadata(io.BytesIO(index.footer))
        schema = self._metadata.schema
        name = column_of_images(file.url, schema.to_arrow_schema())
        paths = [schema.column(number).path for number in range(len(schema))]
        self._path = name if name in paths else f"{name}.bytes"
        self._column = paths.index(self._path)
        self._ends = np.cumsum(group_sizes(self._metadata), dtype=np.int64)
        blocks = np.append(index.rows["image_block"].astype(np.int64), 0)
        if len(index):
            blocks[-1] = blocks[-2] + _num_blocks(int(index.rows["image_size"][-1]))
        self._starts = blocks[np.append(0, self._ends)] * tarfile.BLOCKSIZE

    def block(self, offset: int) -> "GroupBlock":
        """Return the block of the row group that contains the image at an offset in the file of images."""
        group = int(np.searchsorted(self._starts, offset, side="right")) - 1
        return GroupBlock(self.file, int(self._starts[group]), int(self._starts[group + 1]), self, group)

    def spans(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """Return the start and end of each row group that contains at least one of the given rows.

        These are offsets in the file of images that the module's docstring describes.
        """
        groups = np.unique(np.searchsorted(self._ends, rows, side="right"))
        return [(int(self._starts[group]), int(self._starts[group + 1])) for group in groups]

    def read(self, group: int) -> bytes:
        """Read the images of a row group in one request. Each image is padded to a multiple of 512 bytes.

        Raises:
            UserError: If the table has changed, or if two attempts return corrupt data.
        """
        import pyarrow.parquet

        column = self._metadata.row_group(group).column(self._column)
        start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        for _ in range(2):
            part = self.file.read(start, column.total_compressed_size)
            try:
                reader = pyarrow.parquet.ParquetFile(_PartialFile(start, part, self.file.size), metadata=self._metadata)
                cells = reader.read_row_group(group, columns=[self._path]).column(0)
                return b"".join(_pad_to_block(_image_of(cell)[0]) for cell in cells)
            except (pyarrow.ArrowException, OSError):
                self.file.require_same()
        raise UserError(
            f"{self.file}: the content differs from the index; run `grr-coca data index` on this file again"
        )


@dataclass(frozen=True)
class GroupBlock(RemoteBlock):
    """Images of a row group. `start` and `end` are offsets in the file of images, not in the table."""

    table: RemoteTable = field(compare=False, repr=False)
    group: int = field(compare=False)

    def read(self) -> bytes:
        """Fetch the images; see `RemoteTable.read`."""
        return self.table.read(self.group)


class _PartialFile(io.RawIOBase):
    """File of which only one part is available. Reading elsewhere returns no bytes."""

    def __init__(self, start: int, part: bytes, size: int) -> None:
        self._start, self._part, self._size, self._at = start, part, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        begin = self._at - self._start
        end = len(self._part) if size < 0 else min(begin + size, len(self._part))
        found = self._part[begin:end] if 0 <= begin < end else b""
        self._at += len(found)
        return found


def _image_of(cell: "pyarrow.Scalar[Any]") -> "tuple[bytes, str, Any]":
    """Return the bytes of an image, its path, and the cause of its error or None. A bad image has no bytes."""
    try:
        return *content_of(cell, ""), None
    except BadSample as error:
        return b"", "", error.cause


def _num_blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE)


def _pad_to_block(image: bytes) -> bytes:
    return image + bytes(-len(image) % tarfile.BLOCKSIZE)
