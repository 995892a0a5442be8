"""Names that were met. Many of them lie on disk, so memory does not grow with their number."""

import sqlite3
from collections.abc import Iterable

from grr_coca.search.entry import name_id, pieces


class Seen:
    """How often each text was added. Texts are kept as digests of 63 bits."""

    def __init__(self) -> None:
        # A database without a name lies in memory until it is large, then in a file that nobody else sees.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE seen (id INTEGER PRIMARY KEY, times INTEGER NOT NULL)")

    def add(self, texts: Iterable[str]) -> None:
        """Add texts."""
        self._database.execute("BEGIN")
        statement = "INSERT INTO seen VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET times = times + 1"
        self._database.executemany(statement, ((name_id(text),) for text in texts))
        self._database.execute("COMMIT")

    def missing(self, texts: Iterable[str]) -> Iterable[str]:
        """The texts that were never added."""
        for piece in pieces(texts, 500):
            marks = ", ".join("?" * len(piece))
            ids = [name_id(text) for text in piece]
            found = {row for (row,) in self._database.execute(f"SELECT id FROM seen WHERE id IN ({marks})", ids)}
            yield from (text for text, identity in zip(piece, ids, strict=True) if identity not in found)

    def take(self, text: str) -> bool:
        """Take a text once, if it was added more often than it was taken. Returns whether it was."""
        statement = "UPDATE seen SET times = times - 1 WHERE id = ? AND times > 0"
        return self._database.execute(statement, (name_id(text),)).rowcount > 0

    def close(self) -> None:
        """Forget all texts."""
        self._database.close()
