"""The store on a Milvus server. The id of a picture comes from its name, so writing it twice leaves one row.

Shapes: N pictures, E embedding width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from grr_coca.errors import UserError
from grr_coca.search.entry import Entry, Failure, Header, PicturePlace, name_id, pieces
from grr_coca.search.filters import Filter
from grr_coca.search.milvus.expression import ALWAYS, quoted, to_expression
from grr_coca.search.milvus.notes import Notes, everything_of
from grr_coca.search.milvus.rows import READ, as_kept, from_record, from_utf8, place_of_record, to_record
from grr_coca.search.store import HASHED, SAMPLE, SAMPLE_CAPTIONS, Changes, Described, Known, LibrarySample, Match

AT_ONCE = 500
MOST_HITS = 16_384
"""Most hits that a server gives in one answer."""
IDS = 2**63
"""All ids are below this."""


class MilvusStore:
    """An index on a server. See `grr_coca.search.store.Store` for its methods.

    The server has no transactions over several rows: a change that is interrupted may be done in part, and the next
    update does the rest. Several processes may write; of two that write one picture, the last one wins.
    """

    def __init__(self, location: str, client: Any, name: str, header: Header, notes: Notes) -> None:
        self.location = location
        self.header = header
        self._client = client
        self._name = name
        self._notes = notes
        self._reads = notes.reads

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads see the state at its beginning, or a later one: a server has no snapshots. Errors are `UserError`."""
        with server_errors(self.location), self._reads.snapshot():
            yield

    def __len__(self) -> int:
        with self.snapshot():
            (row,) = self._reads.query(self._name, filter=ALWAYS, output_fields=["count(*)"])
            return int(row["count(*)"])

    # --- reading

    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """The pictures of highest product with the vector, at most 16,384 of them."""
        with self.snapshot():
            (hits,) = self._reads.search(
                self._name,
                data=[np.asarray(vector, np.float32).tolist()],
                anns_field="vector",
                limit=min(count, MOST_HITS),
                filter="" if where is None else to_expression(where),
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": {}},
            )
            return [Match(int(hit["id"]), float(hit["distance"])) for hit in hits]

    def word_matches(self, text: str, count: int, where: Filter | None = None) -> list[Match]:  # noqa: ARG002
        """An empty list: the servers that are supported have no full-text index."""
        return []

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """Rows as entries."""
        return [from_record(row) for row in self._rows_in_order(ids, READ)]

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Embeddings, in the order of the ids."""
        rows = [row["vector"] for row in self._rows_in_order(ids, ["vector"])]
        return np.array(rows, np.float32).reshape(len(rows), self.header.embed_dim)

    def sample(self) -> LibrarySample:
        """The pictures of the smallest ids: a random sample, because ids are digests of names."""
        share = min(1.0, 1.3 * SAMPLE / max(1, len(self)))
        with self.snapshot():
            rows = self._reads.query(
                self._name,
                filter=f"id < {min(int(share * IDS), IDS - 1)}",
                output_fields=["id", "caption", "vector"],
                limit=MOST_HITS,
            )
        drawn = sorted(rows, key=lambda row: row["id"])[:SAMPLE]
        vectors = np.array([row["vector"] for row in drawn], np.float32).reshape(len(drawn), self.header.embed_dim)
        return LibrarySample(vectors, tuple(row["caption"] for row in drawn[:SAMPLE_CAPTIONS]))

    def columns(self) -> frozenset[str]:
        """Names of the columns of tables."""
        with self.snapshot():
            return self._notes.columns()

    def matching(self, where: Filter) -> Iterator[Entry]:
        """Pictures that a filter picks."""
        with self.snapshot():
            for row in everything_of(self._client, self._name, to_expression(where), READ):
                yield from_record(row)

    def hashes(self) -> np.ndarray:
        """Ids, perceptual hashes and digests."""
        with self.snapshot():
            rows = everything_of(self._client, self._name, ALWAYS, ["id", "phash", "digest"])
            return np.fromiter(((row["id"], row["phash"], row["digest"]) for row in rows), HASHED)

    def everything(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """All pictures in the order of their ids."""
        with self.snapshot():
            for row in everything_of(self._client, self._name, ALWAYS, [*READ, "vector"]):
                yield from_record(row), np.array(row["vector"], np.float16)

    def failures(self) -> list[Failure]:
        """What could not be read."""
        with self.snapshot():
            return self._notes.failures()

    def known(self, names: Sequence[str]) -> dict[str, Known]:
        """Stamp, digest and fields of each picture that is known."""
        with self.snapshot():
            found = {f.name: Known(f.stamp, "") for f in self._notes.failures(names) if f.stamp is not None}
            entries = map(from_record, self._rows([name_id(name) for name in names], READ))
            return found | {entry.name: Known(entry.stamp, entry.digest, entry.fields) for entry in entries}

    def twins(self, digests: Sequence[str]) -> dict[str, Described]:
        """What was said of pictures of the same bytes."""
        found: dict[str, Described] = {}
        with self.snapshot():
            for piece in pieces(digests, AT_ONCE):
                expression = f"digest in [{', '.join(map(quoted, piece))}]"
                columns = ["digest", "caption", "vector", "phash", "width", "height"]
                for row in everything_of(self._client, self._name, expression, columns):
                    measured = (row["phash"], row["width"], row["height"])
                    found[row["digest"]] = Described(row["caption"], np.array(row["vector"], np.float16), *measured)
        return found

    def roots(self) -> list[str]:
        """The arguments that pictures or failures were found by."""
        with self.snapshot():
            rows = everything_of(self._client, self._name, ALWAYS, ["root"])
            return sorted({from_utf8(row["root"]) for row in rows} | self._notes.roots())

    def places(self, root: str) -> Iterator[PicturePlace]:
        """Places below an argument."""
        with self.snapshot():
            for row in everything_of(self._client, self._name, f"root == {quoted(root)}", ["name", "file", "offset"]):
                yield place_of_record(row)
            yield from (
                PicturePlace.of_name(failure.name) for failure in self._notes.failures() if failure.root == root
            )

    def _rows_in_order(self, ids: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        found = {row["id"]: row for row in self._rows(ids, columns)}
        if missing := set(ids).difference(found):
            raise UserError(
                f"{self.location}: {len(missing)} pictures were removed while they were looked at; search again"
            )
        return [found[identity] for identity in ids]

    def _rows(self, ids: Sequence[int], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        with self.snapshot():
            for piece in pieces(ids, AT_ONCE):
                yield from self._reads.query(
                    self._name, filter=f"id in {piece}", output_fields=["id", *columns], limit=len(piece)
                )

    # --- writing

    def claim(self) -> None:
        """Do nothing: a server takes several writers."""

    def commit(self, changes: Changes) -> None:
        """Write changes. What makes a picture known comes last: an update that is interrupted before does it again."""
        added = {entry.name: (entry, vector) for entry, vector in changes.added}
        failed = {failure.name: failure for failure in changes.failed}
        with self.snapshot():
            self._notes.add_columns({name for entry, _ in added.values() for name in entry.fields})
            self._notes.remove_failures([*changes.removed, *added])
            records = [to_record(entry, as_kept(vector)) for entry, vector in added.values()]
            for piece in pieces([*records, *self._touched(changes)], AT_ONCE):
                self._client.upsert(self._name, piece)
            for ids in pieces([name_id(name) for name in (*changes.removed, *failed)], AT_ONCE):
                self._client.delete(self._name, ids=ids)
            self._notes.add_failures(failed.values())
            self._reads.forget()

    def compact(self) -> bool:
        """Do nothing: a server does this by itself."""
        return False

    def _touched(self, changes: Changes) -> list[dict[str, Any]]:
        touches = {name_id(touch.name): touch for touch in changes.touched}
        records = []
        for row in self._rows(list(touches), [*READ, "vector"]):
            touch = touches[row["id"]]
            entry = replace(from_record(row), stamp=touch.stamp, offset=touch.offset)
            records.append(to_record(entry, np.array(row["vector"])))
        return records


@contextmanager
def server_errors(location: str) -> Iterator[None]:
    """Turn errors of a server, and its silence, into a `UserError`."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except UserError:
        raise
    except (MilvusException, OSError, RuntimeError, TimeoutError) as error:
        words = " ".join(str(getattr(error, "message", error)).split())[:300]
        raise UserError(
            f"{location}: the Milvus server is gone, or refuses ({words}); what was committed before is kept"
        ) from error
