"""Reads from a server, of which only the first one of a snapshot has to wait.

A strong read waits for the next tick of the server's clock, a fifth of a second, so that it sees all that was written
before. Later reads of the same snapshot find that state without waiting: an index is loaded once, so all reads are
answered in one place, which does not go back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Reads:
    """Queries and searches that all see at least what was there when their snapshot began."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._depth = 0
        self._seen: set[str] = set()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Snapshots within a snapshot are part of it."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.forget()

    def forget(self) -> None:
        """Let the next read of each collection wait again, because something was written."""
        self._seen.clear()

    def query(self, name: str, **options: Any) -> list[dict[str, Any]]:
        """`MilvusClient.query`."""
        with self.snapshot():
            rows = self._client.query(name, consistency_level=self._level(name), **options)
            self._seen.add(name)
            return list(rows)

    def search(self, name: str, **options: Any) -> list[list[dict[str, Any]]]:
        """`MilvusClient.search`."""
        with self.snapshot():
            hits = self._client.search(name, consistency_level=self._level(name), **options)
            self._seen.add(name)
            return list(hits)

    def _level(self, name: str) -> str:
        return "Eventually" if name in self._seen else "Strong"
