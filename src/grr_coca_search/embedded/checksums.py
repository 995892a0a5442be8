"""Checksums of the vector file, one per block of rows, in the table `blocks`.

SQLite detects most corruption of its database. Corruption of the vector file would otherwise not be noticed, because
any bytes are valid vectors. The writer adds rows and their checksums in the same transaction. Rows that an older
version wrote get checksums when a writer next opens the index.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from grr_coca_search.embedded.vectors import VectorFile

ROWS_PER_BLOCK = 4096
"""Number of rows in each block except the last, which may have fewer."""

_TABLE = """
CREATE TABLE IF NOT EXISTS blocks (
    generation INTEGER NOT NULL, first INTEGER NOT NULL, rows INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (generation, first)
) WITHOUT ROWID
"""


class RowBlock(NamedTuple):
    """Block of `rows` consecutive rows in the vector file, starting with row `first`, and the CRC-32 of their bytes."""

    first: int
    rows: int
    checksum: int

    @property
    def end(self) -> int:
        """Number of the first row after the block."""
        return self.first + self.rows


def read_blocks(database: sqlite3.Connection, generation: int) -> list[RowBlock]:
    """Return the blocks of the vector file of a generation, in order.

    The list is empty if the file has no rows, or if only an older version has written to the index.
    """
    if not _has_table(database):
        return []
    statement = "SELECT first, rows, checksum FROM blocks WHERE generation = ? ORDER BY first"
    return [RowBlock(*row) for row in database.execute(statement, (generation,))]


def append_blocks(database: sqlite3.Connection, generation: int, vectors: np.ndarray) -> None:
    """Add the checksums of new rows, N E, that follow the last block in the table.

    The caller must commit the transaction.
    """
    write_blocks(database, generation, following_blocks(_last_block(database, generation), vectors))


def write_blocks(database: sqlite3.Connection, generation: int, blocks: Iterable[RowBlock]) -> None:
    """Write blocks to the table, in place of blocks with the same first row. The caller must commit the transaction."""
    database.executemany(
        "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", ((generation, *block) for block in blocks)
    )


def following_blocks(last: RowBlock, vectors: np.ndarray) -> Iterator[RowBlock]:
    """Yield the blocks of new rows, N E, that follow an existing block.

    If the existing block is incomplete, the first of the new rows are added to it, and it is yielded first, with its
    new checksum.
    """
    place = 0
    while place < len(vectors):
        if last.rows % ROWS_PER_BLOCK == 0:
            last = RowBlock(last.end, 0, 0)
        rows = np.ascontiguousarray(vectors[place : place + ROWS_PER_BLOCK - last.rows], np.float16)
        last = RowBlock(last.first, last.rows + len(rows), zlib.crc32(rows.tobytes(), last.checksum))
        place += len(rows)
        yield last


def add_missing_checksums(database: sqlite3.Connection, file: VectorFile, generation: int) -> None:
    """Make the table contain the checksums of exactly the rows of a generation's vector file.

    Missing checksums are added. Those of other generations, and of rows that were not committed, are removed. Nothing
    is done if the last block already ends at the last row. Only a writer may call this function, and only outside of
    transactions, because it commits its own transaction.

    Raises:
        CorruptDataError: If the file ends before its last row.
    """
    if _has_table(database) and _last_block(database, generation).end == len(file):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute(_TABLE)
        database.execute("DELETE FROM blocks WHERE generation <> ? OR first + rows > ?", (generation, len(file)))
        start = _last_block(database, generation).end
        for first in range(start, len(file), ROWS_PER_BLOCK):
            append_blocks(database, generation, file.read(first, min(first + ROWS_PER_BLOCK, len(file))))
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def corrupt_blocks(blocks: Iterable[RowBlock], file: VectorFile) -> Iterator[RowBlock]:
    """Yield the blocks whose rows in the file differ from the rows that were written, or are not in the file.

    Raises:
        CorruptDataError: If the file has become shorter than its committed rows since it was opened.
    """
    for block in blocks:
        if block.end > len(file) or zlib.crc32(file.read(block.first, block.end).tobytes()) != block.checksum:
            yield block


def _last_block(database: sqlite3.Connection, generation: int) -> RowBlock:
    statement = "SELECT first, rows, checksum FROM blocks WHERE generation = ? ORDER BY first DESC LIMIT 1"
    row = database.execute(statement, (generation,)).fetchone()
    return RowBlock(0, 0, 0) if row is None else RowBlock(*row)


def _has_table(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'blocks'").fetchone() is not None
