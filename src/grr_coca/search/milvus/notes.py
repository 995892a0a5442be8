"""What an index holds besides pictures: its header, the names of columns, pictures that could not be read.

Reads from a server, of which only the first one of a snapshot has to wait.

A strong read waits for the next tick of the server's clock, a fifth of a second, so that it sees all that was written
before. Later reads of the same snapshot find that state without waiting: an index is loaded once, so all reads are
answered in one place, which does not go back.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

from grr_coca.search.entry import Failure, Header, Stamp, pieces
from grr_coca.search.milvus.expression import quoted
from grr_coca.search.milvus.rows import as_utf8, from_utf8


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


NOTES = {"key", "kind", "root", "value", "nothing"}
"""Columns of the collection of notes."""
Kind = Literal["header", "column", "failure"]
LONGEST = 16_000
"""Most characters of a message that is kept."""
AT_ONCE = 500
MOST_COLUMNS = 16_384
NOTHING = [0.0, 0.0]
"""The vector of every row, because Milvus asks for one."""


def notes_of(name: str) -> str:
    """The name of the collection of notes."""
    return f"{name}_notes"


def noted_header(client: Any, name: str) -> Header | None:
    """The header of the index of a name; None if there is no such index, or if one is only half made."""
    notes = notes_of(name)
    if not client.has_collection(name) or not client.has_collection(notes) or not client.list_indexes(notes):
        return None
    client.load_collection(notes)  # does nothing if it is loaded, as it is unless somebody released it
    rows = client.query(notes, filter='key == "header:"', output_fields=["value"])
    return Header(**json.loads(rows[0]["value"])) if rows else None


class Notes:
    """Texts by key, in a collection of their own."""

    def __init__(self, client: Any, name: str) -> None:
        self.reads = Reads(client)
        self._client = client
        self._name = notes_of(name)

    @classmethod
    def create(cls, client: Any, name: str) -> Self:
        """An empty collection."""
        from pymilvus import DataType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, max_length=40_000, is_primary=True)
        schema.add_field("kind", DataType.VARCHAR, max_length=16)
        schema.add_field("root", DataType.VARCHAR, max_length=40_000)
        schema.add_field("value", DataType.VARCHAR, max_length=65_000)
        schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)
        index = client.prepare_index_params()
        index.add_index("nothing", index_type="FLAT", metric_type="L2")
        client.create_collection(notes_of(name), schema=schema, index_params=index, consistency_level="Strong")
        return cls(client, name)

    def write_header(self, header: Header) -> None:
        """Keep the header."""
        self._write([("header", "", "", json.dumps(vars(header)))])

    def columns(self) -> frozenset[str]:
        """Names of columns."""
        rows = self.reads.query(self._name, filter='kind == "column"', output_fields=["value"], limit=MOST_COLUMNS)
        return frozenset(row["value"] for row in rows)

    def add_columns(self, names: Iterable[str]) -> None:
        """Keep the names of some columns."""
        self._write([("column", name, "", name) for name in names])

    def failures(self, names: Sequence[str] | None = None) -> list[Failure]:
        """Pictures that could not be read, sorted by name: all of them, or those of some names."""
        if names is None:
            rows = list(self._read("failure"))
        else:
            rows = [row for piece in pieces(names, AT_ONCE) for row in self._of(piece)]
        found = []
        for row in rows:
            stamp, message = json.loads(row["value"])
            name = from_utf8(row["key"].removeprefix("failure:"))
            found.append(Failure(name, from_utf8(row["root"]), None if stamp is None else Stamp(*stamp), message))
        return sorted(found)

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Keep what could not be read."""
        self._write([("failure", f.name, f.root, json.dumps([f.stamp, f.message[:LONGEST]])) for f in failures])

    def remove_failures(self, names: Iterable[str]) -> None:
        """Forget the failures of some names."""
        for piece in pieces(names, AT_ONCE):
            keys = ", ".join(quoted(f"failure:{name}") for name in piece)
            self._client.delete(self._name, filter=f"key in [{keys}]")

    def roots(self) -> set[str]:
        """The arguments that failures were found by."""
        return {from_utf8(row["root"]) for row in self._read("failure")}

    def _of(self, names: Sequence[str]) -> list[dict[str, Any]]:
        keys = ", ".join(quoted(f"failure:{name}") for name in names)
        return self.reads.query(self._name, filter=f"key in [{keys}]", output_fields=["key", "root", "value"])

    def _read(self, kind: Kind) -> Iterator[dict[str, Any]]:
        return everything_of(self._client, self._name, f'kind == "{kind}"', ["key", "root", "value"])

    def _write(self, rows: Sequence[tuple[Kind, str, str, str]]) -> None:
        for piece in pieces(rows, AT_ONCE):
            records = [
                {
                    "key": f"{kind}:{as_utf8(key)}",
                    "kind": kind,
                    "root": as_utf8(root),
                    "value": value,
                    "nothing": NOTHING,
                }
                for kind, key, root, value in piece
            ]
            self._client.upsert(self._name, records)


def everything_of(client: Any, name: str, expression: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All rows that an expression picks, piece by piece, in the order of their keys."""
    iterator = client.query_iterator(name, batch_size=1000, filter=expression, output_fields=list(columns))
    try:
        while rows := iterator.next():
            yield from rows
    finally:
        iterator.close()
