"""Vector file: one embedding per row, in half precision. Committed rows never change.

Shapes: N rows, E embedding width, Q queries.
"""

import os
import sqlite3
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import CorruptDataError
from grr_coca.common.files import BINARY, read_at
from grr_coca.common.threads import num_threads
from grr_coca_search.store import SAMPLE, SAMPLE_CAPTIONS, LibrarySample

_CHUNK_BYTES = 2**19
"""Size of a chunk of vectors after their conversion to float32, in bytes. Such a chunk fits into the processor's cache.
"""
_CHUNKS_PER_THREAD = 16
"""Minimum number of chunks per thread. With fewer chunks, an additional thread would not save time."""
_SIGN_AND_FRACTION = np.int32(-0x70000001)  # 0x8fffffff
_HALF_TO_SINGLE = np.float32(2.0**112)
"""Power of two whose exponent is the difference between the exponent biases of single and half precision, 127 - 15."""


def vectors_file(folder: Path, generation: int) -> Path:
    """Return the path of a generation's vector file: `vectors.f16`, then `vectors-1.f16` after a rewrite, and so on."""
    return folder / (f"vectors-{generation}.f16" if generation else "vectors.f16")


def how_to_restore(folder: Path) -> str:
    """Return the part of an error message that explains how to restore a corrupt index.

    It warns against copying into the folder, which would modify files that may be in use.
    """
    return (
        f"rebuild the index, or copy a backup to a new folder next to {folder}, and rename both; never copy into a "
        "folder that is in use"
    )


class VectorFile:
    """First rows of a vector file in half precision, N E, read on demand.

    The file is read, not memory-mapped. If it is overwritten or truncated, reading raises an error, whereas access to a
    memory map would kill the process (SIGBUS). Reading also takes only 0.85 times as long.

    Args:
        path: Path of the file.
        rows: Number of rows, N.
        width: Width of a row, E.

    Raises:
        FileNotFoundError: If the file does not exist, for example because a newer generation has replaced it. A file
            with 0 rows need not exist.
        CorruptDataError: If the file is shorter than its committed rows.
    """

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self.path, self.shape = path, (rows, width)
        self._row_bytes = 2 * width
        if rows == 0:
            return
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | BINARY)
        weakref.finalize(self, os.close, self._file)
        _require_size(path, os.fstat(self._file).st_size, rows * self._row_bytes)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int, into: np.ndarray | None = None) -> np.ndarray:
        """Return the rows from `start` up to, but excluding, `stop`. Any number of threads may read at the same time.

        Args:
            start: First row.
            stop: Row after the last row.
            into: 16-bit array that has at least this many rows, and into which they are read. If it is None, a new
                array is created.

        Raises:
            CorruptDataError: If the file ends before `stop`.
        """
        rows = np.empty((stop - start, self.shape[1]), np.float16) if into is None else into[: stop - start]
        content = memoryview(rows.view(np.uint8).reshape(-1).data) if rows.size else memoryview(b"")
        done, place = 0, start * self._row_bytes
        while done < len(content):
            count = _read_into(content[done:], self._file, place + done)
            if count == 0:
                raise CorruptDataError(
                    f"{self.path}: corrupt: it ends before row {stop:,}; {how_to_restore(self.path.parent)}"
                )
            done += count
        return rows

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the rows with the given numbers, in the same order, in half precision.

        Raises:
            CorruptDataError: If the file ends before one of the rows.
        """
        requested = np.asarray(numbers, np.int64)
        found = np.empty((len(requested), self.shape[1]), np.float16)
        # positions at which a run of consecutive rows begins
        runs = np.flatnonzero(np.diff(requested, prepend=-2) != 1).tolist()
        for begin, end in pairwise([*runs, len(requested)]):
            first = int(requested[begin])
            self.read(first, first + end - begin, found[begin:end])
        return found


def _read_into(buffer: memoryview, file: int, place: int) -> int:
    """Read bytes of a file, starting at the offset `place`, into a buffer.

    Return the number of bytes, which may be smaller than the buffer, and is 0 at the end of the file.
    """
    if hasattr(os, "preadv"):
        return os.preadv(file, [buffer], place)
    content = read_at(file, len(buffer), place)  # Windows
    buffer[: len(content)] = content
    return len(content)


def append_rows(path: Path, rows: int, vectors: np.ndarray) -> None:
    """Write vectors, N E, after the first `rows` rows of a file, and wait until they are on disk.

    If the file already has more than `rows` rows, the additional rows were never committed, and are removed first. If
    the file does not exist, it is created.

    Raises:
        OSError: If the disk is full or cannot be written to. The file is then truncated after the first `rows` rows.
        CorruptDataError: If the file has fewer than `rows` rows.
    """
    start = rows * vectors.shape[1] * 2
    content = np.ascontiguousarray(vectors, np.float16).tobytes()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | BINARY, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        _require_size(path, size, start)
        if size > start:
            # Windows cannot shorten a file that a reader has mapped. The additional rows are then overwritten instead.
            with suppress(OSError):
                os.ftruncate(descriptor, start)
        try:
            os.lseek(descriptor, start, os.SEEK_SET)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, start)
            raise
    finally:
        os.close(descriptor)


def _require_size(path: Path, size: int, committed: int) -> None:
    if size < committed:
        raise CorruptDataError(
            f"{path}: corrupt: the file has only {size:,} of {committed:,} committed bytes; "
            f"{how_to_restore(path.parent)}"
        )


def products(vectors: VectorFile, queries: np.ndarray) -> np.ndarray:
    """Return the dot products of all rows, N E, with all queries, Q E, as float32, N Q.

    Raises:
        CorruptDataError: If the file ends before the last row.
    """
    scores = np.empty((len(vectors), len(queries)), np.float32)
    scaled = np.ascontiguousarray(queries.T, np.float32) * _HALF_TO_SINGLE
    step = max(1, _CHUNK_BYTES // (4 * max(1, vectors.shape[1])))
    threads = max(1, min(num_threads(), len(vectors) // (step * _CHUNKS_PER_THREAD)))
    share = -(-len(vectors) // threads) or 1

    def multiply(first: int) -> None:
        halves, buffer = (np.empty((step, vectors.shape[1]), kind) for kind in (np.float16, np.int32))
        for start in range(first, min(first + share, len(vectors)), step):
            stop = min(start + step, first + share, len(vectors))
            np.matmul(_to_float32_scaled(vectors.read(start, stop, halves), buffer), scaled, out=scores[start:stop])

    # NumPy releases the interpreter lock, so threads compute parts of the product in parallel. This thread computes the
    # first part.
    others = [_thread_pool(threads - 1).submit(multiply, first) for first in range(share, len(vectors), share)]
    multiply(0)
    for other in others:
        other.result()
    return scores


@cache
def _thread_pool(count: int) -> ThreadPoolExecutor:
    """Return a pool of `count` threads, which all searches of this process share.

    The pool is cached, because starting threads for each search took a quarter of the search's time.
    """
    return ThreadPoolExecutor(count, "products")


def _to_float32_scaled(vectors: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """Convert half-precision numbers, N E, to float32 by shifting their bits.

    The results, which are a view of `buffer`, are too small by the factor `_HALF_TO_SINGLE`. This takes half as long as
    NumPy's own conversion, which does not use vector instructions. It is valid only for finite numbers, which all
    components of embeddings are.
    """
    bits = buffer[: len(vectors)]
    np.left_shift(vectors.view(np.int16), 13, out=bits, dtype=np.int32)
    np.bitwise_and(bits, _SIGN_AND_FRACTION, out=bits)
    return bits.view(np.float32)


def top_k_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of the rows with the `count` highest of N scores, best first.

    Rows with a score of minus infinity are excluded. Rows with equal scores are in the order of their numbers.
    """
    count = min(count, int(np.isfinite(scores).sum()))
    if count == 0:
        return np.empty(0, np.int64)
    lowest = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= lowest)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _rows_of(ids: Sequence[object], count: int) -> np.ndarray:
    """Return the numbers of the rows to which ids belong.

    Raises:
        ValueError: If an id is not a number, or does not belong to one of the first `count` rows.
    """
    try:
        rows = np.array(ids, np.int64) - 1
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise ValueError("the id is out of range")
    return rows


class StateRow(NamedTuple):
    """Row of the table `state`.

    Attributes:
        revision: Number of commits.
        generation: Number of times that the vector file was rewritten.
        rows: Number of committed rows in the vector file.
        live: Number of images.
    """

    revision: int
    generation: int
    rows: int
    live: int


def read_state(database: sqlite3.Connection, folder: Path) -> StateRow:
    """Read the table `state`.

    Raises:
        CorruptDataError: If the table is empty, or a value is not an integer of at least 0. This is possible because
            SQLite accepts any text in a numeric column.
    """
    row = database.execute("SELECT revision, generation, rows, live FROM state").fetchone() or (None,)
    if not all(isinstance(number, int) and number >= 0 for number in row):
        raise CorruptDataError(f"{folder}: corrupt: invalid state {row}; {how_to_restore(folder)}")
    return StateRow(*row)


class State:
    """Committed state of an index, which many snapshots can share.

    Attributes:
        vectors: Rows of the vector file.
        live: Mask of the rows that belong to images.
        row: Row of the table `state`.
    """

    def __init__(self, row: StateRow, vectors: VectorFile, live: np.ndarray) -> None:
        self.row, self.vectors, self.live = row, vectors, live
        self._sample: LibrarySample | None = None

    @classmethod
    def read(cls, database: sqlite3.Connection, folder: Path, width: int, before: "State | None") -> "State":
        """Return the state that the current transaction of `database` sees.

        Only changes since the state `before` are read, so that a search in a large index does not read the entire
        index. If nothing has changed, the result is `before`.

        Raises:
            FileNotFoundError: If the vector file does not exist, usually because it was rewritten after the transaction
                began.
            CorruptDataError: If the table `state`, the vector file or the ids of removed images are corrupt.
        """
        row = read_state(database, folder)
        if before is not None and row.revision == before.row.revision:
            return before
        vectors = VectorFile(vectors_file(folder, row.generation), row.rows, width)
        known, since = np.empty(0, bool), -1
        # The revision decreases only if a user has replaced the database. In that case, all rows are read again.
        if before is not None and row.generation == before.row.generation and row.revision > before.row.revision:
            known = before.live[: row.rows]
            since = before.row.revision if len(known) else -1
        live = np.concatenate([known, np.ones(row.rows - len(known), bool)])
        gone = [identity for (identity,) in database.execute("SELECT id FROM gone WHERE revision > ?", (since,))]
        try:
            live[_rows_of(gone, row.rows)] = False
        except ValueError as error:
            message = f"{folder}: corrupt: the list of removed images has invalid ids"
            raise CorruptDataError(f"{message}; {how_to_restore(folder)}") from error
        return cls(row, vectors, live)

    def sample(self, database: sqlite3.Connection) -> LibrarySample:
        """Return a random sample of the images: those with the smallest `Entry.name_hash`. It is cached.

        Args:
            database: Connection whose current transaction sees this state.
        """
        if self._sample is None:
            drawn = database.execute("SELECT id, caption FROM pictures ORDER BY draw LIMIT ?", (SAMPLE,)).fetchall()
            rows = np.array([identity for identity, _ in drawn], np.int64) - 1
            captions = tuple(caption for _, caption in drawn[:SAMPLE_CAPTIONS])
            self._sample = LibrarySample(self.vectors.rows(rows).astype(np.float32), captions)
        return self._sample
