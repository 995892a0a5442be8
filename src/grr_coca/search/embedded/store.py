"""The embedded store: a search is one exact product, and many processes read while one writes.

Shapes: N pictures, E embedding width.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from grr_coca.search.embedded.database import (
    FAILURES_OF,
    PICTURES_OF,
    READ,
    as_bytes,
    database_errors,
    fields_of_row,
    from_row,
    open_database,
    read_header,
)
from grr_coca.search.embedded.vectors import State, best_rows, products, rows_of
from grr_coca.search.embedded.writer import Writer
from grr_coca.search.entry import Entry, Failure, FieldValue, PicturePlace, Stamp, pieces, search_words
from grr_coca.search.filters import Filter, to_sql
from grr_coca.search.store import HASHED, Changes, Described, Known, LibrarySample, Match

MOST_PARAMETERS = 500
"""Parameters of one statement, at most. Older versions of SQLite take 999."""
ROWS_AT_ONCE = 2048


class EmbeddedStore:
    """An index in a folder. See `grr_coca.search.store.Store` for its methods.

    The lock of the writer is taken by the first `commit`, and kept until the store is closed.

    Raises:
        UserError: there is no index in the folder, or none that this version reads.
    """

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self._folder = folder
        self._database = open_database(folder)
        with database_errors(folder):
            self.header = read_header(self._database)
        self._state = State(folder, self.header.embed_dim)
        self._writer: Writer | None = None
        self._lock = threading.RLock()
        self._depth = 0

    def close(self) -> None:
        """Let go of the files, and of the writer's lock."""
        with self._lock:
            self._database.close()
            self._state = State(self._folder, self.header.embed_dim)  # the file of vectors is mapped no more
            if self._writer is not None:
                self._writer.release()
                self._writer = None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One read transaction; threads of one process take turns."""
        with self._lock, database_errors(self._folder):
            if self._depth == 0:
                self._begin()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    def _begin(self) -> None:
        while True:
            self._database.execute("BEGIN")
            try:
                self._state.refresh(self._database)
                return
            except FileNotFoundError:
                # The writer has written the vectors anew since: begin with the state that has them.
                (revision,) = self._database.execute("SELECT revision FROM state").fetchone()
                self._database.execute("ROLLBACK")
                if (revision,) == self._database.execute("SELECT revision FROM state").fetchone():
                    raise
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        with self.snapshot():
            return self._state.count

    # --- reading

    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """The pictures of highest product with the vector."""
        with self.snapshot():
            scores = products(self._state.vectors, vector[None])[:, 0]
            allowed = self._state.live if where is None else self._allowed(where)
            rows = best_rows(np.where(allowed, scores, -np.inf), count)
            return [Match(int(row) + 1, float(scores[row])) for row in rows]

    def _allowed(self, where: Filter) -> np.ndarray:
        condition, values = to_sql(where)
        found = self._database.execute(f"SELECT id FROM pictures WHERE {condition}", _bound(values))
        allowed = np.zeros(len(self._state.live), bool)
        allowed[np.fromiter((identity for (identity,) in found), np.int64) - 1] = True
        return allowed

    def word_matches(self, text: str, count: int, where: Filter | None = None) -> list[Match]:
        """The pictures that match the words best; they need not hold all of them."""
        words = search_words(text)
        if not words:
            return []
        join, values = "", list[FieldValue]()
        if where is not None:
            condition, values = to_sql(where)
            join = f"JOIN pictures ON pictures.id = words.rowid AND {condition}"
        # Double quotes keep FTS5 from taking a word for a part of its query language.
        query = " OR ".join(f'"{word}"' for word in words)
        statement = f"SELECT words.rowid, -rank FROM words {join} WHERE words MATCH ? ORDER BY rank LIMIT ?"
        with self.snapshot():
            found = self._database.execute(statement, [*_bound(values), query, count])
            return [Match(identity, score) for identity, score in found]

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """Rows as entries."""
        found: dict[int, Entry] = {}
        with self.snapshot():
            for piece in pieces(ids, MOST_PARAMETERS):
                rows = self._database.execute(f"{READ} WHERE id IN ({_marks(piece)})", piece)
                found |= {row[0]: from_row(row) for row in rows}
        return [found[identity] for identity in ids]

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Rows of the file of vectors."""
        with self.snapshot():
            return rows_of(self._state.vectors, np.asarray(ids, np.int64) - 1)

    def sample(self) -> LibrarySample:
        """Some pictures, drawn at random by their names."""
        with self.snapshot():
            return self._state.sample(self._database)

    def columns(self) -> frozenset[str]:
        """Names of the columns of tables."""
        with self.snapshot():
            return frozenset(name for (name,) in self._database.execute("SELECT name FROM columns"))

    def matching(self, where: Filter) -> Iterator[Entry]:
        """Pictures that a filter picks."""
        condition, values = to_sql(where)
        with self.snapshot():
            for row in self._database.execute(f"{READ} WHERE {condition} ORDER BY id", _bound(values)):
                yield from_row(row)

    def hashes(self) -> np.ndarray:
        """Ids, perceptual hashes and digests."""
        with self.snapshot():
            return np.fromiter(self._database.execute("SELECT id, phash, digest FROM pictures ORDER BY id"), HASHED)

    def everything(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """All pictures in the order in which they were added."""
        with self.snapshot():
            cursor = self._database.execute(f"{READ} ORDER BY id")
            while rows := cursor.fetchmany(ROWS_AT_ONCE):
                for row in rows:
                    yield from_row(row), self._state.vectors[row[0] - 1]

    def failures(self) -> list[Failure]:
        """What could not be read."""
        with self.snapshot():
            rows = self._database.execute("SELECT name, root, size, mtime_ns, message FROM failures ORDER BY name")
            return [_failure(row) for row in rows]

    def known(self, names: Sequence[str]) -> dict[str, Known]:
        """Stamp, digest and fields of each picture that is known."""
        found: dict[str, Known] = {}
        with self.snapshot():
            for piece in pieces(map(as_bytes, names), MOST_PARAMETERS):
                for table, described in (("failures", "'', NULL"), ("pictures", "digest, fields")):
                    rows = self._database.execute(
                        f"SELECT name, size, mtime_ns, {described} FROM {table} "
                        f"WHERE name IN ({_marks(piece, 'CAST(? AS TEXT)')}) AND size IS NOT NULL",
                        piece,
                    )
                    found |= {name: _known(*rest) for name, *rest in rows}
        return found

    def twins(self, digests: Sequence[str]) -> dict[str, Described]:
        """What was said of pictures of the same bytes."""
        found: dict[str, Described] = {}
        with self.snapshot():
            for piece in pieces(digests, MOST_PARAMETERS):
                rows = self._database.execute(
                    f"SELECT id, digest, caption, phash, width, height FROM pictures WHERE digest IN ({_marks(piece)})",
                    piece,
                )
                for identity, digest, caption, *measured in rows:
                    found[digest] = Described(caption, np.array(self._state.vectors[identity - 1]), *measured)
        return found

    def roots(self) -> list[str]:
        """The arguments that pictures or failures were found by."""
        with self.snapshot():
            statement = "SELECT root FROM pictures UNION SELECT root FROM failures ORDER BY 1"
            return [root for (root,) in self._database.execute(statement)]

    def places(self, root: str) -> Iterator[PicturePlace]:
        """Places below an argument."""
        yield from (PicturePlace.of(*row) for *row, _ in self._pages(PICTURES_OF, root, 0))
        yield from (PicturePlace.of_name(name) for name, _ in self._pages(FAILURES_OF, root, b""))

    def _pages(self, statement: str, root: str, first: int | bytes) -> Iterator[tuple]:
        """Rows below an argument. They are read piece by piece, so that a writer may commit in between."""
        last = first
        while True:
            with self.snapshot():
                rows = self._database.execute(statement, (as_bytes(root), last, ROWS_AT_ONCE)).fetchall()
            if not rows:
                break
            yield from rows
            last = rows[-1][-1]

    # --- writing

    def claim(self) -> None:
        """Take the writer's lock."""
        with self._lock, database_errors(self._folder):
            self._write_with()

    def commit(self, changes: Changes) -> None:
        """Write changes to the disk."""
        with self._lock, database_errors(self._folder):
            self._write_with().commit(changes)

    def compact(self) -> bool:
        """Write the file of vectors anew if more than half of its rows are of pictures that are gone."""
        with self._lock, database_errors(self._folder):
            return self._write_with().compact()

    def _write_with(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self._folder, self._database, self.header.embed_dim)
        return self._writer


def _bound(values: Sequence[object]) -> list[object]:
    return [as_bytes(value) if isinstance(value, str) else value for value in values]


def _marks(items: Sequence[object], mark: str = "?") -> str:
    return ", ".join([mark] * len(items))


def _known(size: int, mtime_ns: int, digest: str, fields: str | None) -> Known:
    return Known(Stamp(size, mtime_ns), digest, fields_of_row(fields))


def _failure(row: sqlite3.Row | tuple) -> Failure:
    name, root, size, mtime_ns, message = row
    return Failure(name, root, None if size is None else Stamp(size, mtime_ns), message)
