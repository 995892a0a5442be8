"""Checksums of the vector file, by block of rows, in the table `blocks`.

SQLite detects most corruption of its database, but any bytes are valid vectors. The writer adds the checksums together
with the rows, in one transaction. Rows that an older version wrote get checksums when a writer next opens the index.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from grr_coca_search.embedded.vectors import VectorFile

ROWS_PER_BLOCK = 4096

_TABLE = """
CREATE TABLE IF NOT EXISTS blocks (
    generation INTEGER NOT NULL, first INTEGER NOT NULL, rows INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (generation, first)
) WITHOUT ROWID
"""


class RowBlock(NamedTuple):
    """Checksum of `rows` rows in the file, from row `first`."""

    first: int
    rows: int
    checksum: int

    @property
    def end(self) -> int:
        """Row after the last row of the block."""
        return self.first + self.rows


def read_blocks(database: sqlite3.Connection, generation: int) -> list[RowBlock]:
    """Return the blocks of a generation's file, in order; or none if only an older version wrote the file."""
    if not _has_table(database):
        return []
    statement = "SELECT first, rows, checksum FROM blocks WHERE generation = ? ORDER BY first"
    return [RowBlock(*row) for row in database.execute(statement, (generation,))]


def append_blocks(database: sqlite3.Connection, generation: int, vectors: np.ndarray) -> None:
    """Add the checksums of rows that follow those in the table. The caller must commit."""
    write_blocks(database, generation, following_blocks(_last(database, generation), vectors))


def write_blocks(database: sqlite3.Connection, generation: int, blocks: Iterable[RowBlock]) -> None:
    """Write blocks. The caller must commit."""
    database.executemany(
        "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", ((generation, *block) for block in blocks)
    )


def following_blocks(last: RowBlock, vectors: np.ndarray) -> Iterator[RowBlock]:
    """Yield the blocks of N E rows that follow a block.

    If that block is incomplete, it is yielded first, with some of the rows.
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
    """Add missing checksums, and remove those of other generations. Only a writer may call this, outside of
    transactions.

    Raises:
        CorruptDataError: If the file is shorter than its rows.
    """
    if _has_table(database) and _last(database, generation).end == len(file):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute(_TABLE)
        database.execute("DELETE FROM blocks WHERE generation <> ? OR first + rows > ?", (generation, len(file)))
        start = _last(database, generation).end
        for first in range(start, len(file), ROWS_PER_BLOCK):
            append_blocks(database, generation, file.read(first, min(first + ROWS_PER_BLOCK, len(file))))
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def damaged_blocks(blocks: Iterable[RowBlock], file: VectorFile) -> Iterator[RowBlock]:
    """Yield the blocks whose rows differ from the rows that were written.

    Raises:
        CorruptDataError: If the file ends before the last row of the blocks.
    """
    for block in blocks:
        if block.end > len(file) or zlib.crc32(file.read(block.first, block.end).tobytes()) != block.checksum:
            yield block


def _last(database: sqlite3.Connection, generation: int) -> RowBlock:
    statement = "SELECT first, rows, checksum FROM blocks WHERE generation = ? ORDER BY first DESC LIMIT 1"
    row = database.execute(statement, (generation,)).fetchone()
    return RowBlock(0, 0, 0) if row is None else RowBlock(*row)


def _has_table(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'blocks'").fetchone() is not None
