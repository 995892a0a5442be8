"""The store on a Milvus server. The id of an image is a hash of its name, so writing an image twice leaves one row.

Shapes: N images, E embedding width.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.extras import require_extra
from grr_coca.search.entry import VERSION, Entry, Failure, Header, ImagePlace, chunks, name_id
from grr_coca.search.filters import Filter
from grr_coca.search.milvus.notes import NOTES, Notes, all_rows, noted_header, notes_of
from grr_coca.search.milvus.rows import (
    ALWAYS,
    COLUMNS,
    NUMBERS,
    READ,
    TEXTS,
    as_kept,
    certainty_of_record,
    from_record,
    from_utf8,
    place_of_record,
    quoted,
    to_expression,
    to_record,
)
from grr_coca.search.store import (
    HASHED,
    SAMPLE,
    SAMPLE_CAPTIONS,
    Changes,
    CheckedIndex,
    FieldSummary,
    ImageDescription,
    ImageState,
    LibrarySample,
    Match,
)

_CHUNK_SIZE = 500
_MAX_HITS = 16_384
"""Maximum number of hits that a server returns at once."""
_IDS = 2**63
"""All ids are below this."""


class MilvusStore:
    """An index on a server. `grr_coca.search.store.Store` documents its methods.

    The server has no transactions over several rows: an interrupted commit may be half done, and the next update does
    the rest. Several processes may write. If two write the same image, the last one wins.
    """

    def __init__(self, location: str, client: Any, name: str, header: Header, notes: Notes) -> None:
        self.location = location
        self.header = header
        self._client = client
        self._name = name
        self._notes = notes
        self._reads = notes.reads
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A context for reads. They see the state at its beginning or a later one, as servers have no snapshots.

        Threads of one process take turns.
        """
        with self._lock, _server_errors(self.location), self._reads.snapshot():
            yield

    def __len__(self) -> int:
        with self.snapshot():
            (row,) = self._reads.query(self._name, filter=ALWAYS, output_fields=["count(*)"])
            return int(row["count(*)"])

    # --- Reading

    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """The images with the largest dot products, at most 16,384."""
        with self.snapshot():
            (hits,) = self._reads.search(
                self._name,
                data=[np.asarray(vector, np.float32).tolist()],
                anns_field="vector",
                limit=min(count, _MAX_HITS),
                filter="" if where is None else to_expression(where),
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": {}},
            )
            return [Match(int(hit["id"]), float(hit["distance"])) for hit in hits]

    def word_matches(self, text: str, count: int, where: Filter | None = None) -> list[Match]:  # noqa: ARG002
        """An empty list: supported servers have no full-text index."""
        return []

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """The entries of these ids."""
        return [from_record(row) for row in self._rows_in_order(ids, READ)]

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """The embeddings of these ids."""
        rows = [row["vector"] for row in self._rows_in_order(ids, ["vector"])]
        return np.array(rows, np.float32).reshape(len(rows), self.header.embed_dim)

    def sample(self) -> LibrarySample:
        """The images with the smallest ids. They are a random sample, because ids are hashes of names."""
        share = min(1.0, 1.3 * SAMPLE / max(1, len(self)))
        with self.snapshot():
            rows = self._reads.query(
                self._name,
                filter=f"id < {min(int(share * _IDS), _IDS - 1)}",
                output_fields=["id", "caption", "vector"],
                limit=_MAX_HITS,
            )
        drawn = sorted(rows, key=lambda row: row["id"])[:SAMPLE]
        vectors = np.array([row["vector"] for row in drawn], np.float32).reshape(len(drawn), self.header.embed_dim)
        return LibrarySample(vectors, tuple(row["caption"] for row in drawn[:SAMPLE_CAPTIONS]))

    def columns(self) -> frozenset[str]:
        """The names of all fields that come from tables."""
        with self.snapshot():
            return self._notes.columns()

    def matching(self, where: Filter) -> Iterator[Entry]:
        """All images that match a filter."""
        with self.snapshot():
            for row in all_rows(self._client, self._name, to_expression(where), READ):
                yield from_record(row)

    def revision(self) -> str:
        """A random text, which each commit replaces at its end."""
        with self.snapshot():
            return self._notes.revision()

    def ids_of(self, draws: Sequence[int]) -> dict[int, int]:
        """The ids of images, by their `Entry.draw`, which is the id."""
        return {row["id"]: row["id"] for row in self._rows(draws, ["id"])}

    def newest_first(self, where: Filter | None = None) -> np.ndarray:
        """The ids of all images that match a filter, the newest first."""
        expression = ALWAYS if where is None else to_expression(where)
        with self.snapshot():
            rows = list(all_rows(self._client, self._name, expression, ["id", "date", "name"]))
        rows.sort(key=lambda row: row["name"])
        rows.sort(key=lambda row: row["date"], reverse=True)
        return np.array([row["id"] for row in rows], np.int64)

    def summary(self, field: str, count: int) -> FieldSummary:
        """The values of a field. All rows are read."""
        with self.snapshot():
            entries = map(from_record, all_rows(self._client, self._name, ALWAYS, READ))
            return FieldSummary.of((value for entry in entries for value in entry.values_of(field)), count)

    def hashes(self) -> np.ndarray:
        """Ids, perceptual hashes and digests of all images."""
        with self.snapshot():
            rows = all_rows(self._client, self._name, ALWAYS, ["id", "phash", "digest"])
            return np.fromiter(((row["id"], row["phash"], row["digest"]) for row in rows), HASHED)

    def everything(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """All entries with their embeddings, in the order of their ids."""
        with self.snapshot():
            for row in all_rows(self._client, self._name, ALWAYS, [*READ, "vector"]):
                yield from_record(row), np.array(row["vector"], np.float16)

    def failures(self) -> list[Failure]:
        """The images that could not be read."""
        with self.snapshot():
            return self._notes.failures()

    def known(self, names: Sequence[str]) -> dict[str, ImageState]:
        """The known state of these images, by name."""
        with self.snapshot():
            found = {f.name: ImageState(f.stamp, "") for f in self._notes.failures(names) if f.stamp is not None}
            entries = map(from_record, self._rows([name_id(name) for name in names], READ))
            return found | {entry.name: _known(entry) for entry in entries}

    def twins(self, digests: Sequence[str]) -> dict[str, ImageDescription]:
        """Caption and embedding of images with these digests, by digest."""
        found: dict[str, ImageDescription] = {}
        with self.snapshot():
            for chunk in chunks(digests, _CHUNK_SIZE):
                expression = f"digest in [{', '.join(map(quoted, chunk))}]"
                columns = ["digest", "caption", "vector", "kinds"]
                for row in all_rows(self._client, self._name, expression, columns):
                    vector = np.array(row["vector"], np.float16)
                    found[row["digest"]] = ImageDescription(row["caption"], vector, certainty_of_record(row))
        return found

    def roots(self) -> list[str]:
        """The arguments (files, folders, patterns) through which images or failures were found."""
        with self.snapshot():
            rows = all_rows(self._client, self._name, ALWAYS, ["root"])
            return sorted({from_utf8(row["root"]) for row in rows} | self._notes.roots())

    def places(self, root: str) -> Iterator[ImagePlace]:
        """The places of the images and failures that were found through an argument."""
        with self.snapshot():
            for row in all_rows(self._client, self._name, f"root == {quoted(root)}", ["name", "file", "offset"]):
                yield place_of_record(row)
            yield from (ImagePlace.of_name(failure.name) for failure in self._notes.failures() if failure.root == root)

    def excluded(self) -> tuple[str, ...]:
        """The patterns of what updates leave out."""
        with self.snapshot():
            return self._notes.excluded()

    def check(self) -> CheckedIndex:
        """Refuse: the server checks its files itself."""
        raise UserError(f"{self.location}: a server checks its files itself; --check is for an index in a folder")

    def was_imported(self) -> bool:
        """True if it was made of a file from elsewhere."""
        with self.snapshot():
            return self._notes.was_imported()

    def _rows_in_order(self, ids: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        found = {row["id"]: row for row in self._rows(ids, columns)}
        if missing := set(ids).difference(found):
            raise UserError(f"{self.location}: {len(missing)} images were removed during the search; search again")
        return [found[identity] for identity in ids]

    def _rows(self, ids: Sequence[int], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        with self.snapshot():
            for chunk in chunks(ids, _CHUNK_SIZE):
                yield from self._reads.query(
                    self._name, filter=f"id in {chunk}", output_fields=["id", *columns], limit=len(chunk)
                )

    # --- Writing

    def claim(self) -> None:
        """Do nothing: a server accepts several writers."""

    def commit(self, changes: Changes) -> None:
        """Write changes. The last step makes an image known: if a commit is interrupted, the next update redoes it."""
        added = {entry.name: (entry, vector) for entry, vector in changes.added}
        failed = {failure.name: failure for failure in changes.failed}
        with self.snapshot():
            self._notes.add_columns({name for entry, _ in added.values() for name in entry.fields})
            self._notes.remove_failures([*changes.removed, *added])
            records = [to_record(entry, as_kept(vector)) for entry, vector in added.values()]
            for chunk in chunks([*records, *self._touched_and_noted(changes)], _CHUNK_SIZE):
                self._client.upsert(self._name, chunk)
            for ids in chunks([name_id(name) for name in (*changes.removed, *failed)], _CHUNK_SIZE):
                self._client.delete(self._name, ids=ids)
            self._notes.add_failures(failed.values())
            self._notes.renew_revision()  # last: who sees it also sees the change
            self._reads.forget()

    def exclude(self, patterns: Sequence[str]) -> None:
        """Remember patterns."""
        with self.snapshot():
            self._notes.exclude(patterns)
            self._reads.forget()

    def mark_as_imported(self) -> None:
        """Remember that it was made of a file from elsewhere."""
        with self.snapshot():
            self._notes.mark_as_imported()
            self._reads.forget()

    def compact(self) -> bool:
        """Do nothing: the server frees space itself."""
        return False

    def _touched_and_noted(self, changes: Changes) -> list[dict[str, Any]]:
        touches = {name_id(touch.name): touch for touch in changes.touched}
        photos = {name_id(noted.name): noted for noted in changes.noted}
        records = []
        for row in self._rows(list({**touches, **photos}), [*READ, "vector"]):
            entry = from_record(row)
            if row["id"] in touches:
                entry = replace(entry, stamp=touches[row["id"]].stamp, offset=touches[row["id"]].offset)
            if row["id"] in photos:
                noted = photos[row["id"]]
                phash = entry.phash if noted.phash is None else noted.phash
                entry = replace(entry, photo=noted.photo, phash=phash, look=noted.look or entry.look)
            records.append(to_record(entry, np.array(row["vector"])))
        return records


def _known(entry: Entry) -> ImageState:
    return ImageState(entry.stamp, entry.digest, entry.fields, None if entry.photo is None else entry.photo.sidecars)


# --- Opening, creating and removing an index

_SECONDS_TO_CONNECT = 20.0
_DEFAULT_NAME = "grr_coca"
_NAME = re.compile(r"[A-Za-z_]\w{0,200}", re.ASCII)


def open_collection(location: str, is_optional: bool) -> MilvusStore | None:
    """Open the index at a location; None if there is none and it is optional.

    Raises:
        UserError: the server cannot be reached, there is no index, or a newer version wrote it.
    """
    place, client = _connected(location)
    try:
        with _server_errors(location):
            _require_ours(location, client, place.name)
            header = noted_header(client, place.name)
        if header is None and is_optional:
            client.close()
            return None
        if header is None:
            raise UserError(f"{location}: no index of this name; make one by grr-coca index IMAGES… --out {location}")
        if header.version > VERSION:
            raise UserError(
                f"{location}: written by a newer grr-coca (format {header.version}; this one reads {VERSION})"
            )
    except BaseException:
        client.close()
        raise
    return MilvusStore(location, client, place.name, header, Notes(client, place.name))


def create_collection(location: str, header: Header) -> MilvusStore:
    """Create an index without images.

    Raises:
        UserError: the server cannot be reached, or refuses.
    """
    place, client = _connected(location)
    with _server_errors(location):
        _require_ours(location, client, place.name)
        for name in (place.name, notes_of(place.name)):
            if client.has_collection(name):  # unfinished: without a header it has no images
                client.drop_collection(name)
        _create_images(client, place.name, header.embed_dim)
        notes = Notes.create(client, place.name)
        notes.write_header(header)
    return MilvusStore(location, client, place.name, header, notes)


def drop_collections(location: str) -> None:
    """Remove an index, finished or not.

    Raises:
        UserError: the server cannot be reached, or a collection does not belong to an index.
    """
    place, client = _connected(location)
    try:
        with _server_errors(location):
            _require_ours(location, client, place.name)
            for name in (place.name, notes_of(place.name)):
                client.drop_collection(name)
    finally:
        client.close()


class _ServerPlace(NamedTuple):
    """The address of a server, or the path of a file of Milvus Lite, and the name of the collection."""

    uri: str
    name: str


def _parse_location(location: str) -> _ServerPlace:
    """Parse `http://HOST:PORT/NAME` or `milvus:FILE`.

    Raises:
        UserError: the name is invalid in Milvus.
    """
    if location.startswith("milvus:"):
        return _ServerPlace(location.removeprefix("milvus:"), _DEFAULT_NAME)
    parts = urlsplit(location)
    name = parts.path.strip("/") or _DEFAULT_NAME
    if not _NAME.fullmatch(name):
        raise UserError(f"{location}: the name '{name}' is invalid for a collection; give letters, digits and _")
    return _ServerPlace(f"{parts.scheme}://{parts.netloc}", name)


def _require_ours(location: str, client: Any, name: str) -> None:
    """Raise an error if a collection with one of these names does not belong to an index.

    Raises:
        UserError: it belongs to something else, and must not be touched.
    """
    for one, columns in ((name, COLUMNS), (notes_of(name), NOTES)):
        if client.has_collection(one):
            found = {field["name"] for field in client.describe_collection(one)["fields"]}
            if found != columns:
                raise UserError(f"{location}: the collection '{one}' is not part of an index; give another name")


def _create_images(client: Any, name: str, width: int) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    for column, length in TEXTS.items():
        schema.add_field(column, DataType.VARCHAR, max_length=length * 4)
    for column in NUMBERS:
        schema.add_field(column, DataType.INT64)
    for column in ("fields", "kinds"):
        schema.add_field(column, DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")  # exact
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _connected(location: str) -> tuple[_ServerPlace, Any]:
    place = _parse_location(location)
    require_extra("milvus", f"{location}: an index on a Milvus server")
    if location.startswith("milvus:") and find_spec("milvus_lite") is None:
        raise UserError(f"{location}: Milvus Lite is not installed; pip install 'pymilvus[milvus_lite]'")
    from pymilvus import MilvusClient

    with _server_errors(location):
        return place, MilvusClient(place.uri, timeout=_SECONDS_TO_CONNECT)


@contextmanager
def _server_errors(location: str) -> Iterator[None]:
    """Turn errors and timeouts of a server into a `UserError`."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except UserError:
        raise
    except (MilvusException, OSError, RuntimeError, TimeoutError) as error:
        words = " ".join(str(getattr(error, "message", error)).split())[:300]
        raise UserError(
            f"{location}: the Milvus server does not answer, or refuses ({words}); what was committed before is kept"
        ) from error
