"""The file of embeddings: rows in half precision, one after the other, never changed once they are committed.

Shapes: N rows, E embedding width, Q queries.

What a process keeps of the committed state: which rows of the file of vectors are pictures.

It is brought up to date from what has changed since, so that a search of a large index does not read all of it.
"""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grr_coca.errors import UserError
from grr_coca.search.store import SAMPLE, SAMPLE_CAPTIONS, LibrarySample

CHUNK_BYTES = 2**20
"""Bytes of a block of vectors in 32 bits, so small that it stays in the processor's cache while it is multiplied."""


def vectors_file(folder: Path, generation: int) -> Path:
    """The path of the vectors: `vectors.f16`; `vectors-1.f16` and so on once rows of gone pictures were left out."""
    return folder / (f"vectors-{generation}.f16" if generation else "vectors.f16")


def map_rows(path: Path, rows: int, width: int) -> np.ndarray:
    """The first rows of a file, mapped into memory: N E.

    Raises:
        FileNotFoundError: a newer generation has taken its place.
        UserError: the file is shorter than what was committed.
    """
    if rows == 0:
        return np.empty((0, width), np.float16)
    _require_size(path, path.stat().st_size, rows * width * 2)
    return np.asarray(_Unwarned(np.memmap(path, np.float16, "r", shape=(rows, width))))


class _Unwarned:
    """An array that is not said to be read-only, because torch warns of those. Nothing writes to it.

    A mapping that may be written to, even one that keeps what is written to itself, counts as memory, and systems
    refuse one that is larger than theirs.
    """

    def __init__(self, mapped: np.ndarray) -> None:
        self._mapped = mapped  # which holds the mapping open
        place, _ = mapped.__array_interface__["data"]
        self.__array_interface__ = {**mapped.__array_interface__, "data": (place, False)}


def append_rows(path: Path, rows: int, vectors: np.ndarray) -> None:
    """Write N E vectors behind the first `rows` rows, and wait until they are on the disk.

    What lies behind these rows was never committed, and is cut off.

    Raises:
        OSError: the disk is full or cannot be written to; nothing is left behind the first rows.
        UserError: the file is shorter than the first rows.
    """
    start = rows * vectors.shape[1] * 2
    content = np.ascontiguousarray(vectors, np.float16).tobytes()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _require_size(path, os.fstat(descriptor).st_size, start)
        os.ftruncate(descriptor, start)
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(descriptor, content[written:], start + written)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, start)
            raise
    finally:
        os.close(descriptor)


def _require_size(path: Path, size: int, committed: int) -> None:
    if size < committed:
        raise UserError(
            f"{path}: damaged: {size:,} bytes, of {committed:,} that were committed; "
            "make the index anew, or take it from a copy"
        )


def products(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Products of all rows with all queries, in 32 bits: N Q of N E and Q E."""
    import torch  # late: it converts halves many times as fast as NumPy

    with torch.inference_mode():
        transposed = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).T.contiguous()
        scores = torch.empty(len(vectors), len(queries))
        step = max(1, CHUNK_BYTES // (4 * max(1, vectors.shape[1])))
        for start in range(0, len(vectors), step):
            block = torch.from_numpy(vectors[start : start + step])
            torch.matmul(block.float(), transposed, out=scores[start : start + step])
    return scores.numpy()


def best_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """The rows of the `count` highest of N scores, the best first; ties in order; none of minus infinity."""
    count = min(count, int(np.isfinite(scores).sum()))
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def rows_of(vectors: np.ndarray, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Some rows in 32 bits."""
    return np.asarray(vectors[np.asarray(rows, np.int64)], np.float32)


def read_state(database: sqlite3.Connection, folder: Path) -> tuple[int, int, int, int]:
    """Revision, generation, rows of the file of vectors, and pictures.

    Raises:
        UserError: one is no number. SQLite keeps any text in a column of numbers, whoever wrote it.
    """
    row = database.execute("SELECT revision, generation, rows, live FROM state").fetchone()
    if not all(isinstance(number, int) and number >= 0 for number in row):
        raise UserError(f"{folder}: damaged: its state is {row}; make the index anew, or take it from a copy")
    return row


class State:
    """Follows the committed states of one index. `vectors`: rows × E, `live`: whether each row is a picture."""

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
        """Take in the state that the transaction of `database` sees.

        Raises:
            FileNotFoundError: the file of vectors has been written anew since the transaction began.
            UserError: that file is damaged.
        """
        revision, generation, rows, live = read_state(database, self._folder)
        if revision == self._revision:
            return
        self.vectors = map_rows(vectors_file(self._folder, generation), rows, self._width)
        if generation != self._generation:
            self.live, self._revision = np.empty(0, bool), -1
        # The revision only goes back if the database was replaced by hand. Then nothing is known of its rows.
        known = self.live[:rows] if revision > self._revision else np.empty(0, bool)
        self.live = np.concatenate([known, np.ones(rows - len(known), bool)])
        since = self._revision if len(known) else -1
        gone = [identity for (identity,) in database.execute("SELECT id FROM gone WHERE revision > ?", (since,))]
        self.live[np.asarray(gone, np.int64) - 1] = False
        self._revision, self._generation, self.count, self._sample = revision, generation, live, None

    def sample(self, database: sqlite3.Connection) -> LibrarySample:
        """Pictures drawn at random by their names."""
        if self._sample is None:
            drawn = database.execute("SELECT id, caption FROM pictures ORDER BY draw LIMIT ?", (SAMPLE,)).fetchall()
            rows = np.array([identity for identity, _ in drawn], np.int64) - 1
            captions = tuple(caption for _, caption in drawn[:SAMPLE_CAPTIONS])
            self._sample = LibrarySample(rows_of(self.vectors, rows), captions)
        return self._sample
