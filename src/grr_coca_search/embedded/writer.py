"""Writer of an index in a folder. It first writes the vectors, then commits their rows in SQLite.

After any interruption, the index is in the state of the last committed transaction. The next commit removes vectors
whose transaction was not committed.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from grr_coca_search.embedded.checksums import (
    ROWS_PER_BLOCK,
    RowBlock,
    add_missing_checksums,
    append_blocks,
    following_blocks,
    write_blocks,
)
from grr_coca_search.embedded.database import ADD, lock_writer, open_database, photo_columns, sql_text, to_row, upgrade
from grr_coca_search.embedded.vectors import VectorFile, append_rows, read_state, vectors_file
from grr_coca_search.entry import Entry
from grr_coca_search.store import Changes, PhotoUpdate

MIN_REMOVED_ROWS = 1000
"""Minimum number of rows of removed images for which the vector file is rewritten."""


class Writer:
    """Writer of an index. It holds the writer lock until `release` is called.

    Its creation upgrades an index that an older version wrote, and removes the leftovers of a killed writer. All
    methods may raise SQLite and system errors; `database_errors` converts them.

    Raises:
        UserError: If the writer lock cannot be acquired, or if the index is missing or corrupt.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._folder = folder
        self._width = width
        self._lock = lock_writer(folder)
        try:
            self._database = open_database(folder)
        except BaseException:
            self._lock.release()
            raise
        try:
            upgrade(self._database)
            self._database.execute("PRAGMA temp_store = MEMORY")
            self._database.execute("CREATE TEMP TABLE added AS SELECT * FROM pictures LIMIT 0")
            self._remove_leftovers()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release the lock, and close the connection."""
        self._database.close()
        self._lock.release()

    def commit(self, changes: Changes) -> None:
        """Write changes, and wait until they are on disk. If this raises an error, no change has been written."""
        before = read_state(self._database, self._folder)
        added = list({entry.name: (entry, vector) for entry, vector in changes.added}.values())
        if added:
            vectors = np.stack([vector for _, vector in added])
            append_rows(vectors_file(self._folder, before.generation), before.rows, vectors)
        names = [sql_text(name) for name in (*changes.removed, *(entry.name for entry, _ in added))]
        self._database.execute("BEGIN IMMEDIATE")
        try:
            revision = before.revision + 1
            removed = self._remove(names + [sql_text(failure.name) for failure in changes.failed], revision)
            self._touch(changes)
            first = before.rows + 1
            self._database.executemany(
                "UPDATE pictures SET photo = ?, keywords = ?, phash = COALESCE(?, phash), look = COALESCE(?, look) "
                "WHERE name = CAST(? AS TEXT)",
                self._metadata_rows(changes.noted),
            )
            self._add([entry for entry, _ in added], first)
            self._database.executemany(
                "INSERT INTO failures VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, CAST(? AS TEXT))",
                (
                    (sql_text(name), sql_text(root), *(stamp or (None, None)), sql_text(message))
                    for name, root, stamp, message in {failure.name: failure for failure in changes.failed}.values()
                ),
            )
            self._database.executemany("INSERT OR REPLACE INTO header VALUES (?, ?)", changes.notes.items())
            if added:
                append_blocks(self._database, before.generation, vectors)
            after = (revision, before.rows + len(added), before.live + len(added) - removed)
            self._database.execute("UPDATE state SET revision = ?, rows = ?, live = ?", after)
            self._database.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _metadata_rows(self, notes: Sequence[PhotoUpdate]) -> Iterator[tuple[object, ...]]:
        for noted in notes:
            name = sql_text(noted.name)
            row = self._database.execute("SELECT title FROM pictures WHERE name = CAST(? AS TEXT)", (name,)).fetchone()
            yield (*photo_columns(noted.photo, row[0] if row else ""), noted.phash, noted.pixel_signature or None, name)

    def _remove(self, names: Sequence[str | bytes], revision: int) -> int:
        one = [(name,) for name in names]
        self._database.executemany(
            f"INSERT INTO gone SELECT id, {revision} FROM pictures WHERE name = CAST(? AS TEXT)", one
        )
        removed = self._database.executemany("DELETE FROM pictures WHERE name = CAST(? AS TEXT)", one).rowcount
        self._database.executemany("DELETE FROM failures WHERE name = CAST(? AS TEXT)", one)
        return max(removed, 0)

    def _touch(self, changes: Changes) -> None:
        self._database.executemany(
            'UPDATE pictures SET "offset" = ?, size = ?, mtime_ns = ?, '
            "date = strftime('%Y-%m-%dT%H:%M:%S', ? / 1000000000, 'unixepoch') WHERE name = CAST(? AS TEXT)",
            ((offset, *stamp, stamp.mtime_ns, sql_text(name)) for name, stamp, offset in changes.touched),
        )

    def _add(self, entries: Sequence[Entry], first: int) -> None:
        self._database.executemany(ADD, ((first + i, *to_row(entry)) for i, entry in enumerate(entries)))
        self._database.execute("INSERT INTO pictures SELECT * FROM added")
        self._database.execute("DELETE FROM added")
        columns = {name for entry in entries for name in entry.fields}
        self._database.executemany("INSERT OR IGNORE INTO columns VALUES (?)", ((name,) for name in columns))

    def compact(self) -> bool:
        """Rewrite the vector file if most of its rows belong to removed images. Return whether it was rewritten.

        It is rewritten if more than half of its rows, and at least `MIN_REMOVED_ROWS`, belong to removed images.
        """
        before = read_state(self._database, self._folder)
        gone = before.rows - before.live
        if gone < MIN_REMOVED_ROWS or gone <= before.rows // 2:
            return False
        ids = np.array([row for (row,) in self._database.execute("SELECT id FROM pictures ORDER BY id")], np.int64)
        old = vectors_file(self._folder, before.generation)
        new = vectors_file(self._folder, before.generation + 1)
        vectors = VectorFile(old, before.rows, self._width)
        step = 16 * ROWS_PER_BLOCK
        blocks: list[RowBlock] = []
        try:
            append_rows(new, 0, np.empty((0, self._width), np.float16))
            for start in range(0, len(ids), step):
                rows = vectors.rows(ids[start : start + step] - 1)
                append_rows(new, start, rows)
                blocks += following_blocks(RowBlock(start, 0, 0), rows)
        except OSError:
            new.unlink(missing_ok=True)  # frees the space again if the disk is full
            raise
        self._database.execute("BEGIN IMMEDIATE")
        try:
            # Ids are changed in ascending order. Every new id is then unused: it is not larger than the old id, and all
            # images with smaller ids have already got their new ids.
            moves = ((new, int(old)) for new, old in enumerate(ids, 1))
            self._database.executemany("UPDATE pictures SET id = ? WHERE id = ?", moves)
            self._database.execute("INSERT INTO words (words) VALUES ('rebuild')")
            self._database.execute("DELETE FROM gone")
            self._database.execute("DELETE FROM blocks")
            write_blocks(self._database, before.generation + 1, blocks)
            after = (before.revision + 1, before.generation + 1, len(ids))
            self._database.execute("UPDATE state SET revision = ?, generation = ?, rows = ?", after)
            self._database.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        _remove(old)
        return True

    def _remove_leftovers(self) -> None:
        """Remove the leftovers of a killed writer: files of other generations, and uncommitted rows.

        Missing checksums are added.
        """
        written = read_state(self._database, self._folder)
        current = vectors_file(self._folder, written.generation)
        for path in self._folder.glob("vectors*.f16"):
            if path != current:
                _remove(path)
        append_rows(current, written.rows, np.empty((0, self._width), np.float16))
        add_missing_checksums(self._database, VectorFile(current, written.rows, self._width), written.generation)

    def _roll_back(self) -> None:
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")


def _remove(path: Path) -> None:
    """Remove a vector file. On Windows, a file that is in use cannot be removed yet; a later writer removes it."""
    with suppress(PermissionError):
        path.unlink(missing_ok=True)
