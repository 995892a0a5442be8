"""The file of vectors: embeddings in half precision, row after row. Committed rows are never changed.

Shapes: N rows, E embedding width, Q queries.
"""

import os
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.files import BINARY
from grr_coca.common.threads import num_threads
from grr_coca.search.store import SAMPLE, SAMPLE_CAPTIONS, LibrarySample

_CHUNK_BYTES = 2**19
"""Bytes of a chunk of vectors as float32, which stays in the processor's cache while it is multiplied."""
_CHUNKS_PER_THREAD = 16
"""Fewer chunks are not worth a thread."""
_SIGN_AND_FRACTION = np.int32(-0x70000001)  # 0x8fffffff
_HALF_TO_SINGLE = np.float32(2.0**112)
"""Ratio of the exponents' biases, 2 ** (127 - 15)."""


def vectors_file(folder: Path, generation: int) -> Path:
    """The path of the file of vectors: `vectors.f16`, and `vectors-1.f16` and so on after each rewrite."""
    return folder / (f"vectors-{generation}.f16" if generation else "vectors.f16")


def map_rows(path: Path, rows: int, width: int) -> np.ndarray:
    """Map the first rows of a file into memory: N E.

    Raises:
        FileNotFoundError: a file of a newer generation has replaced it.
        UserError: the file is shorter than its committed rows.
    """
    if rows == 0:
        return np.empty((0, width), np.float16)
    _require_size(path, path.stat().st_size, rows * width * 2)
    return np.asarray(np.memmap(path, np.float16, "r", shape=(rows, width)))


def append_rows(path: Path, rows: int, vectors: np.ndarray) -> None:
    """Write N E vectors after the first `rows` rows, and wait until they are on the disk.

    Any other rows there were never committed, and are cut off.

    Raises:
        OSError: the disk is full or cannot be written to; the file then ends after the first rows.
        UserError: the file is shorter than the first rows.
    """
    start = rows * vectors.shape[1] * 2
    content = np.ascontiguousarray(vectors, np.float16).tobytes()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | BINARY, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        _require_size(path, size, start)
        if size > start:
            with suppress(OSError):  # Windows does not shorten a file that a reader has mapped; it is overwritten
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
        raise UserError(
            f"{path}: damaged: {size:,} bytes, of {committed:,} that were committed; "
            "make the index again, or restore it from a copy"
        )


def products(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Dot products of all rows with all queries, as float32: N Q from N E and Q E."""
    scores = np.empty((len(vectors), len(queries)), np.float32)
    scaled = np.ascontiguousarray(queries.T, np.float32) * _HALF_TO_SINGLE
    step = max(1, _CHUNK_BYTES // (4 * max(1, vectors.shape[1])))
    threads = max(1, min(num_threads(), len(vectors) // (step * _CHUNKS_PER_THREAD)))
    share = -(-len(vectors) // threads) or 1

    def multiply(first: int) -> None:
        buffer = np.empty((step, vectors.shape[1]), np.int32)
        for start in range(first, min(first + share, len(vectors)), step):
            part = slice(start, min(start + step, first + share, len(vectors)))
            np.matmul(_unscaled(vectors[part], buffer), scaled, out=scores[part])

    # NumPy releases the interpreter's lock. One share is of this thread.
    others = [_helpers(threads - 1).submit(multiply, first) for first in range(share, len(vectors), share)]
    multiply(0)
    for other in others:
        other.result()
    return scores


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """Threads that are kept: to start some for each search took a quarter of its time."""
    return ThreadPoolExecutor(count, "products")


def _unscaled(vectors: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """Half precision as float32, divided by `_HALF_TO_SINGLE`: the bits are moved to their places.

    This takes half the time of NumPy's own conversion, which uses no vector instructions. Embeddings are finite.
    """
    bits = buffer[: len(vectors)]
    np.left_shift(vectors.view(np.int16), 13, out=bits, dtype=np.int32)
    np.bitwise_and(bits, _SIGN_AND_FRACTION, out=bits)
    return bits.view(np.float32)


def best_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """The rows with the `count` highest of N scores, best first. Scores of minus infinity do not count."""
    count = min(count, int(np.isfinite(scores).sum()))
    if count == 0:
        return np.empty(0, np.int64)
    lowest = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= lowest)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def rows_of(vectors: np.ndarray, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """These rows as float32."""
    return np.asarray(vectors[np.asarray(rows, np.int64)], np.float32)


class StateRow(NamedTuple):
    """The row of the table `state`. `rows`: of the file of vectors; `live`: images."""

    revision: int
    generation: int
    rows: int
    live: int


def read_state(database: sqlite3.Connection, folder: Path) -> StateRow:
    """Read the table `state`.

    Raises:
        UserError: a value is not a number. SQLite accepts any text in a column of numbers.
    """
    row = database.execute("SELECT revision, generation, rows, live FROM state").fetchone()
    if not all(isinstance(number, int) and number >= 0 for number in row):
        raise UserError(f"{folder}: damaged: its state is {row}; make the index again, or restore it from a copy")
    return StateRow(*row)


class State:
    """A cached copy of the committed state of an index. `vectors`: rows × E; `live`: True for rows of images.

    `refresh` reads only what has changed since the last time, so a search in a large index does not read all of it.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._folder = folder
        self._width = width
        self._revision = -1
        self._generation = -1
        self._sample: LibrarySample | None = None
        self.vectors = np.empty((0, width), np.float16)
        self.live = np.empty(0, bool)
        self.count = 0

    def refresh(self, database: sqlite3.Connection) -> None:
        """Bring the copy up to date with the state that the transaction of `database` sees.

        Raises:
            FileNotFoundError: the file of vectors was rewritten after the transaction began.
            UserError: that file is damaged.
        """
        revision, generation, rows, live = read_state(database, self._folder)
        if revision == self._revision:
            return
        self.vectors = map_rows(vectors_file(self._folder, generation), rows, self._width)
        if generation != self._generation:
            self.live, self._revision = np.empty(0, bool), -1
        # The revision goes back only if a user has replaced the database. Then all rows are read again.
        known = self.live[:rows] if revision > self._revision else np.empty(0, bool)
        self.live = np.concatenate([known, np.ones(rows - len(known), bool)])
        since = self._revision if len(known) else -1
        gone = [identity for (identity,) in database.execute("SELECT id FROM gone WHERE revision > ?", (since,))]
        self.live[np.asarray(gone, np.int64) - 1] = False
        self._revision, self._generation, self.count, self._sample = revision, generation, live, None

    @property
    def revision(self) -> str:
        """A text that changes with each commit."""
        return f"{self._generation}.{self._revision}"

    def sample(self, database: sqlite3.Connection) -> LibrarySample:
        """A random sample of the images. See `Entry.draw`."""
        if self._sample is None:
            drawn = database.execute("SELECT id, caption FROM pictures ORDER BY draw LIMIT ?", (SAMPLE,)).fetchall()
            rows = np.array([identity for identity, _ in drawn], np.int64) - 1
            captions = tuple(caption for _, caption in drawn[:SAMPLE_CAPTIONS])
            self._sample = LibrarySample(rows_of(self.vectors, rows), captions)
        return self._sample
