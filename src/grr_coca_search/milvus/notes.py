"""Notes of an index on a server.

They are the header, the revision, the names of table fields, unreadable images, excluded patterns, and whether the
index was imported.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self
from uuid import uuid4

from grr_coca_search.entry import Failure, Header, Stamp, chunks
from grr_coca_search.milvus.rows import as_utf8, from_utf8, quoted

NOTES_COLUMNS = {"key", "kind", "root", "value", "nothing"}
"""Columns of the notes collection."""
_Kind = Literal["header", "revision", "column", "failure", "exclude", "imported"]
_TEXT_KINDS: tuple[_Kind, ...] = ("exclude", "imported")
_MAX_MESSAGE_LENGTH = 16_000
"""Maximum number of characters in a message. Longer messages are truncated."""
_CHUNK_SIZE = 500
_MAX_COLUMNS = 16_384
_DUMMY_VECTOR = [0.0, 0.0]
"""Vector that every row gets, because Milvus requires a vector in each row."""


def notes_name(name: str) -> str:
    """Return the name of the notes collection."""
    return f"{name}_notes"


def read_stored_header(client: Any, name: str) -> Header | None:
    """Return the header of the index with a given name, or None if the index does not exist or is unfinished.

    This loads the collection of notes.
    """
    notes = notes_name(name)
    if not client.has_collection(name) or not client.has_collection(notes) or not client.list_indexes(notes):
        return None
    client.load_collection(notes)  # does nothing if the collection is already loaded, as it usually is
    rows = client.query(notes, filter='key == "header:"', output_fields=["value"])
    return Header(**json.loads(rows[0]["value"])) if rows else None


class Notes:
    """Collection of notes on an index. Each note is a text with a key.

    Methods that get `reads` read within its snapshot.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = notes_name(name)

    @classmethod
    def create(cls, client: Any, name: str) -> Self:
        """Create an empty collection of notes."""
        from pymilvus import DataType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, max_length=40_000, is_primary=True)
        schema.add_field("kind", DataType.VARCHAR, max_length=16)
        schema.add_field("root", DataType.VARCHAR, max_length=40_000)
        schema.add_field("value", DataType.VARCHAR, max_length=65_000)
        schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)
        index = client.prepare_index_params()
        index.add_index("nothing", index_type="FLAT", metric_type="L2")
        client.create_collection(notes_name(name), schema=schema, index_params=index, consistency_level="Strong")
        return cls(client, name)

    def write_header(self, header: Header) -> None:
        """Write the header, which marks the index as complete."""
        self._write([("header", "", "", json.dumps(vars(header)))])

    def revision(self, reads: "Reads") -> str:
        """Return the revision that `renew_revision` wrote last, or an empty text if it has not been called yet."""
        rows = reads.query(self._name, filter='key == "revision:"', output_fields=["value"], limit=1)
        return rows[0]["value"] if rows else ""

    def renew_revision(self) -> None:
        """Write a new revision. It is random, because two writers that increment a number could write the same one."""
        self._write([("revision", "", "", uuid4().hex)])

    def columns(self, reads: "Reads") -> frozenset[str]:
        """Return the names of all fields from tables, including those of images that were removed."""
        rows = reads.query(self._name, filter='kind == "column"', output_fields=["value"], limit=_MAX_COLUMNS)
        return frozenset(row["value"] for row in rows)

    def add_columns(self, names: Iterable[str]) -> None:
        """Add names of fields from tables. Names that were added earlier have no effect."""
        self._write([("column", name, "", name) for name in names])

    def failures(self, reads: "Reads", names: Sequence[str] | None) -> list[Failure]:
        """Return the images that could not be read, sorted by name: all of them, or those with the given names."""
        if names is None:
            rows = list(self._read("failure"))
        else:
            rows = [row for chunk in chunks(names, _CHUNK_SIZE) for row in self._query_failures(reads, chunk)]
        found = []
        for row in rows:
            stamp, message = json.loads(row["value"])
            name = from_utf8(row["key"].removeprefix("failure:"))
            found.append(Failure(name, from_utf8(row["root"]), None if stamp is None else Stamp(*stamp), message))
        return sorted(found)

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Write images that could not be read, in place of earlier failures of the same images."""
        self._write(
            [("failure", f.name, f.root, json.dumps([f.stamp, f.message[:_MAX_MESSAGE_LENGTH]])) for f in failures]
        )

    def remove_failures(self, names: Iterable[str]) -> None:
        """Remove the failures of the images with the given names, if there are any."""
        for chunk in chunks(names, _CHUNK_SIZE):
            keys = ", ".join(quoted(f"failure:{name}") for name in chunk)
            self._client.delete(self._name, filter=f"key in [{keys}]")

    def texts(self) -> dict[str, str]:
        """Return the notes that `write` has written, by key: `exclude` and `imported`, if they exist."""
        return {kind: row["value"] for kind in _TEXT_KINDS for row in self._read(kind)}

    def write(self, texts: Mapping[str, str]) -> None:
        """Write the notes with the keys `exclude` and `imported`, and ignore other keys."""
        self._write([(kind, "", "", texts[kind]) for kind in _TEXT_KINDS if kind in texts])

    def _query_failures(self, reads: "Reads", names: Sequence[str]) -> list[dict[str, Any]]:
        keys = ", ".join(quoted(f"failure:{name}") for name in names)
        return reads.query(self._name, filter=f"key in [{keys}]", output_fields=["key", "root", "value"])

    def _read(self, kind: _Kind) -> Iterator[dict[str, Any]]:
        return all_rows(self._client, self._name, f'kind == "{kind}"', ["key", "root", "value"])

    def _write(self, rows: Sequence[tuple[_Kind, str, str, str]]) -> None:
        for chunk in chunks(rows, _CHUNK_SIZE):
            records = [
                {
                    "key": f"{kind}:{as_utf8(key)}",
                    "kind": kind,
                    "root": as_utf8(root),
                    "value": value,
                    "nothing": _DUMMY_VECTOR,
                }
                for kind, key, root, value in chunk
            ]
            self._client.upsert(self._name, records)


# --- Reads


class Reads:
    """Queries and searches of one snapshot, which see the state at its beginning or a later state.

    Only the first read of a collection is strongly consistent. Such a read waits up to a fifth of a second, until the
    next tick of the server's clock, so that it sees everything that was written earlier. Later reads in the same
    snapshot see at least the same state without waiting: because an index is loaded only once, a single node answers
    all reads, and the state of this node never reverts to an earlier one.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._seen: set[str] = set()

    def forget(self) -> None:
        """Make the next read of each collection wait, so that it sees all earlier writes."""
        self._seen.clear()

    def query(self, name: str, **options: Any) -> list[dict[str, Any]]:
        """Call `MilvusClient.query` on the collection `name`, and return the rows."""
        rows = self._client.query(name, consistency_level=self._level(name), **options)
        self._seen.add(name)
        return list(rows)

    def search(self, name: str, **options: Any) -> list[list[dict[str, Any]]]:
        """Call `MilvusClient.search` on the collection `name`, and return the hits of each query."""
        hits = self._client.search(name, consistency_level=self._level(name), **options)
        self._seen.add(name)
        return list(hits)

    def _level(self, name: str) -> str:
        return "Eventually" if name in self._seen else "Strong"


def all_rows(client: Any, name: str, expression: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield all rows that match an expression, in the order of their keys. They are read in chunks."""
    iterator = client.query_iterator(name, batch_size=1000, filter=expression, output_fields=list(columns))
    try:
        while rows := iterator.next():
            yield from rows
    finally:
        iterator.close()
