"""Store on a Milvus server. The id of an image is a hash of its name, so writing an image twice creates only one row.

Shapes: N images, E embedding width.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from grr_coca.common.errors import UserError, pip_install_command, require_extra
from grr_coca_search.entry import Failure, Header, chunks, name_id, require_supported
from grr_coca_search.filters import Filter
from grr_coca_search.milvus.notes import NOTES_COLUMNS, Notes, Reads, all_rows, notes_name, read_stored_header
from grr_coca_search.milvus.rows import (
    ALL_COLUMNS,
    ALWAYS,
    NUMBER_COLUMNS,
    READ_COLUMNS,
    TEXT_COLUMNS,
    from_record,
    from_utf8,
    round_to_half,
    to_expression,
    to_record,
)
from grr_coca_search.store import HASH_ROW, SAMPLE, SAMPLE_CAPTIONS, Changes, LibrarySample, Match, Store, StoredImage

_CHUNK_SIZE = 500
_MAX_HITS = 16_384
"""Maximum number of hits that a server returns per request."""
_IDS = 2**63
"""Exclusive upper bound of ids."""


class MilvusStore(Store):
    """Index on a Milvus server.

    Milvus has no full-text index and no transactions over several rows, so an interrupted commit may be incomplete
    until the next update. Several processes may write at the same time. For each image, the last write wins.
    """

    def __init__(self, location: str, client: Any, name: str, header: Header) -> None:
        super().__init__(location, header)
        self._client = client
        self._name = name
        self._notes = Notes(client, name)

    @classmethod
    def open(cls, location: str, *, is_optional: bool = False) -> "MilvusStore | None":
        """Open the index at a location. Return None if it is optional and does not exist.

        Raises:
            UserError: If pymilvus is not installed, if the server cannot be reached, if the index is not found or was
                written by a newer version, or if another application uses the name.
        """
        place, client = _connect(location)
        try:
            with _server_errors(location):
                _require_index_collection(location, client, place.name)
                for name in (place.name, notes_name(place.name)):
                    if client.has_collection(name):
                        client.load_collection(name)  # Milvus Lite unloads collections when its process ends
                header = read_stored_header(client, place.name)
            if header is None and is_optional:
                client.close()
                return None
            if header is None:
                raise UserError(
                    f"{location}: no index has this name; create an index with grr-coca index IMAGES… --out {location}"
                )
            require_supported(location, header.version)
        except BaseException:
            client.close()
            raise
        return cls(location, client, place.name, header)

    @classmethod
    def create(cls, location: str, header: Header) -> "MilvusStore":
        """Create an index without images, and open it. Collections of an unfinished index are replaced.

        The caller must have checked that the location does not have an index.

        Raises:
            UserError: If pymilvus is not installed, if the server cannot be reached or rejects the request, or if
                another application uses the name.
        """
        place, client = _connect(location)
        with _server_errors(location):
            _require_index_collection(location, client, place.name)
            for name in (place.name, notes_name(place.name)):
                if client.has_collection(name):  # unfinished: images are added only after the header
                    client.drop_collection(name)
            _create_images(client, place.name, header.embed_dim)
            Notes.create(client, place.name).write_header(header)
        return cls(location, client, place.name, header)

    @classmethod
    def remove(cls, location: str) -> None:
        """Remove an index, even if its creation was interrupted.

        Raises:
            UserError: If the server cannot be reached, or a collection does not belong to an index.
        """
        place, client = _connect(location)
        try:
            with _server_errors(location):
                _require_index_collection(location, client, place.name)
                for name in (place.name, notes_name(place.name)):
                    client.drop_collection(name)
        finally:
            client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def begin(self) -> Iterator[Reads]:
        """Yield a snapshot whose reads see the state at its beginning or a later state.

        Milvus servers do not provide snapshots of a fixed state. Server errors in the context become a `UserError`.
        """
        with _server_errors(self.location):
            yield Reads(self._client)

    def __len__(self) -> int:
        """Return the number of images."""
        with self.snapshot() as reads:
            (row,) = reads.query(self._name, filter=ALWAYS, output_fields=["count(*)"])
            return int(row["count(*)"])

    # --- Reading

    def get(self, ids: Sequence[int], *, vectors: bool = False) -> Iterator[StoredImage]:
        """Return the images with the given ids, in any order. Ids that are not in the index are skipped."""
        return map(_row, self._query_by_id(ids, [*READ_COLUMNS, "vector"] if vectors else READ_COLUMNS))

    def scan(self, where: Filter | None = None, *, vectors: bool = False) -> Iterator[StoredImage]:
        """Return all images that match a filter, in the order of their ids."""
        return map(_row, self._all([*READ_COLUMNS, "vector"] if vectors else READ_COLUMNS, where))

    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """Return the images whose embeddings have the largest dot products with a vector, best first.

        These are at most `_MAX_HITS` images.
        """
        with self.snapshot() as reads:
            (hits,) = reads.search(
                self._name,
                data=[np.asarray(vector, np.float32).tolist()],
                anns_field="vector",
                limit=min(count, _MAX_HITS),
                filter="" if where is None else to_expression(where),
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": {}},
            )
            return [Match(int(hit["id"]), float(hit["distance"])) for hit in hits]

    def revision(self) -> str:
        """Return a random text that each commit replaces. It is empty before the first commit."""
        with self.snapshot() as reads:
            return self._notes.revision(reads)

    def failures(self, names: Sequence[str] | None = None) -> list[Failure]:
        """Return the images that could not be read, sorted by name: all of them, or those with the given names."""
        with self.snapshot() as reads:
            return self._notes.failures(reads, names)

    def notes(self) -> dict[str, str]:
        """Return the notes on the index by key; see `Store.notes`."""
        with self.snapshot():
            return self._notes.texts()

    # The methods below read only the columns that they need, whereas the inherited methods would read all columns.

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Return the embeddings of the images with the given ids, in the same order, as float32, N E.

        Raises:
            UserError: If an image no longer exists.
        """
        found = {row["id"]: row["vector"] for row in self._query_by_id(ids, ["id", "vector"])}
        self._require_all(ids, found)
        return np.array([found[identity] for identity in ids], np.float32).reshape(len(ids), self.header.embed_dim)

    def ids_of(self, draws: Sequence[int]) -> dict[int, int]:
        """Return a mapping from the `Entry.name_hash` of images to their ids, which are the same numbers.

        Images that are not in the index are omitted.
        """
        return {row["id"]: row["id"] for row in self._query_by_id(draws, ["id"])}

    def sample(self) -> LibrarySample:
        """Return the images with the smallest ids, which are a random sample because ids are hashes of names."""
        share = min(1.0, 1.3 * SAMPLE / max(1, len(self)))
        with self.snapshot() as reads:
            rows = reads.query(
                self._name,
                filter=f"id < {min(int(share * _IDS), _IDS - 1)}",
                output_fields=["id", "caption", "vector"],
                limit=_MAX_HITS,
            )
        drawn = sorted(rows, key=lambda row: row["id"])[:SAMPLE]
        vectors = np.array([row["vector"] for row in drawn], np.float32).reshape(len(drawn), self.header.embed_dim)
        return LibrarySample(vectors, tuple(row["caption"] for row in drawn[:SAMPLE_CAPTIONS]))

    def columns(self) -> frozenset[str]:
        """Return the names of all fields from tables."""
        with self.snapshot() as reads:
            return self._notes.columns(reads)

    def newest_first(self, where: Filter | None = None) -> np.ndarray:
        """Return the ids of all images that match a filter, newest first. Images of one date are sorted by name."""
        rows = sorted(self._all(["id", "date", "name"], where), key=lambda row: row["name"])
        rows.sort(key=lambda row: row["date"], reverse=True)
        return np.array([row["id"] for row in rows], np.int64)

    def hashes(self) -> np.ndarray:
        """Return the ids, perceptual hashes and digests of all images: N rows of `HASH_ROW`."""
        rows = self._all(["id", "phash", "digest"])
        return np.fromiter(((row["id"], row["phash"], row["digest"]) for row in rows), HASH_ROW)

    def roots(self) -> list[str]:
        """Return the arguments (files, folders, patterns) through which images or failures were found, sorted."""
        found = {from_utf8(row["root"]) for row in self._all(["root"])}
        return sorted(found | {failure.root for failure in self.failures()})

    def _query_by_id(self, ids: Sequence[int], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        with self.reading() as reads:
            for chunk in chunks(ids, _CHUNK_SIZE):
                yield from reads.query(self._name, filter=f"id in {chunk}", output_fields=columns, limit=len(chunk))

    def _all(self, columns: Sequence[str], where: Filter | None = None) -> Iterator[dict[str, Any]]:
        with self.reading():
            yield from all_rows(self._client, self._name, ALWAYS if where is None else to_expression(where), columns)

    # --- Writing

    def commit(self, changes: Changes) -> None:
        """Write changes, and wait until the server has accepted them.

        An image is known to the index only after the last step that concerns it, so if a commit is interrupted, the
        next update repeats it.

        Raises:
            UserError: If the server does not answer, or rejects the request. Some of the changes may have been written.
        """
        added = {entry.name: (entry, vector) for entry, vector in changes.added}
        failed = {failure.name: failure for failure in changes.failed}
        with self.snapshot() as reads:
            self._notes.add_columns({name for entry, _ in added.values() for name in entry.fields})
            self._notes.remove_failures([*changes.removed, *added])
            records = [to_record(entry, round_to_half(vector)) for entry, vector in added.values()]
            for chunk in chunks([*records, *self._changed_records(changes)], _CHUNK_SIZE):
                self._client.upsert(self._name, chunk)
            for ids in chunks([name_id(name) for name in (*changes.removed, *failed)], _CHUNK_SIZE):
                self._client.delete(self._name, ids=ids)
            self._notes.add_failures(failed.values())
            self._notes.write(changes.notes)
            self._notes.renew_revision()  # written last, so that a reader of the new revision also sees the change
            reads.forget()

    def _changed_records(self, changes: Changes) -> Iterator[dict[str, Any]]:
        touches = {name_id(touch.name): touch for touch in changes.touched}
        photos = {name_id(noted.name): noted for noted in changes.noted}
        for identity, entry, vector in self.get(list({**touches, **photos}), vectors=True):
            if touch := touches.get(identity):
                entry = replace(entry, stamp=touch.stamp, offset=touch.offset)
            if noted := photos.get(identity):
                phash = entry.phash if noted.phash is None else noted.phash
                entry = replace(
                    entry,
                    photo=noted.photo,
                    phash=phash,
                    pixel_signature=noted.pixel_signature or entry.pixel_signature,
                )
            assert vector is not None
            yield to_record(entry, round_to_half(vector))


def _row(record: dict[str, Any]) -> StoredImage:
    vector = np.array(record["vector"], np.float16) if "vector" in record else None
    return StoredImage(record["id"], from_record(record), vector)


# --- Servers

_SECONDS_TO_CONNECT = 20.0
_DEFAULT_NAME = "grr_coca"
_NAME = re.compile(r"[A-Za-z_]\w{0,200}", re.ASCII)


class _ServerPlace(NamedTuple):
    """Address of a server, or path of a Milvus Lite file, and the name of the collection."""

    uri: str
    name: str


def _parse_location(location: str) -> _ServerPlace:
    """Parse `http://HOST:PORT/NAME` or `milvus:FILE`. Without a NAME, the collection is `_DEFAULT_NAME`.

    Raises:
        UserError: If the name is invalid in Milvus.
    """
    if location.startswith("milvus:"):
        return _ServerPlace(location.removeprefix("milvus:"), _DEFAULT_NAME)
    parts = urlsplit(location)
    name = parts.path.strip("/") or _DEFAULT_NAME
    if not _NAME.fullmatch(name):
        raise UserError(f"{location}: the name '{name}' is invalid for a collection; use letters, digits and _")
    return _ServerPlace(f"{parts.scheme}://{parts.netloc}", name)


def _require_index_collection(location: str, client: Any, name: str) -> None:
    """Check that the two collections of the index with this name belong to an index if they exist.

    Raises:
        UserError: If a collection belongs to another application, so that it must not be changed.
    """
    for one, columns in ((name, ALL_COLUMNS), (notes_name(name), NOTES_COLUMNS)):
        if client.has_collection(one):
            found = {field["name"] for field in client.describe_collection(one)["fields"]}
            if found != columns:
                raise UserError(f"{location}: the collection '{one}' is not part of an index; pass another name")


def _create_images(client: Any, name: str, width: int) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    for column, length in TEXT_COLUMNS.items():
        schema.add_field(column, DataType.VARCHAR, max_length=length * 4)
    for column in NUMBER_COLUMNS:
        schema.add_field(column, DataType.INT64)
    for column in ("fields", "kinds"):
        schema.add_field(column, DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")  # exact search
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _connect(location: str) -> tuple[_ServerPlace, Any]:
    place = _parse_location(location)
    require_extra("milvus", f"{location}: an index on a Milvus server")
    if location.startswith("milvus:") and find_spec("milvus_lite") is None:
        raise UserError(
            f"{location}: Milvus Lite is not installed; run: {pip_install_command('pymilvus[milvus_lite]')}"
        )
    from pymilvus import MilvusClient

    with _server_errors(location):
        return place, MilvusClient(place.uri, timeout=_SECONDS_TO_CONNECT)


@contextmanager
def _server_errors(location: str) -> Iterator[None]:
    """Convert server errors, system errors and timeouts to a `UserError`."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except UserError:
        raise
    except (MilvusException, OSError, RuntimeError, TimeoutError) as error:
        words = " ".join(str(getattr(error, "message", error)).split())[:300]
        raise UserError(
            f"{location}: the Milvus server does not answer, or rejects the request ({words}); earlier commits are "
            "kept; check the server, and try again"
        ) from error
