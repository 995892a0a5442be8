"""What a process keeps of the committed state: which rows of the file of vectors are pictures.

It is brought up to date from what has changed since, so that a search of a large index does not read all of it.
"""

import sqlite3
from pathlib import Path

import numpy as np

from grr_coca.errors import UserError
from grr_coca.search.embedded.vectors import map_rows, rows_of, vectors_file
from grr_coca.search.store import SAMPLE, SAMPLE_CAPTIONS, LibrarySample


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
