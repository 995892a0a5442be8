"""Store in a folder. A search computes one exact matrix product. Many processes can read while one process writes.

Shapes: N images, E embedding width.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import CorruptDataError, UserError
from grr_coca_search.embedded.checksums import corrupt_blocks, read_blocks
from grr_coca_search.embedded.database import (
    FAILURES_OF,
    FILE,
    IMAGES_OF,
    MODEL_FIELDS,
    PARSE_ERRORS,
    READ,
    create_database,
    database_errors,
    fields_of_row,
    from_row,
    has_no_other_files,
    open_database,
    read_header,
    remove_database,
    sql_text,
)
from grr_coca_search.embedded.vectors import State, how_to_restore, products, top_k_rows
from grr_coca_search.embedded.writer import Writer
from grr_coca_search.entry import Failure, Header, ImageLocation, Stamp, chunks
from grr_coca_search.fields import COLUMNS, FIELDS, MULTI_VALUED_FIELDS, FieldValue
from grr_coca_search.filters import And, Comparison, Filter, Like, Not, OneOf, Or
from grr_coca_search.store import (
    HASH_ROW,
    Changes,
    CheckedIndex,
    FieldSummary,
    ImageState,
    LibrarySample,
    Match,
    Store,
    StoredImage,
)

_MAX_PARAMETERS = 500
"""Maximum number of parameters in a statement. Older versions of SQLite accept at most 999."""
TITLE_WEIGHT, CAPTION_WEIGHT = 5.0, 0.3
_BM25 = f"bm25({TITLE_WEIGHT}, {CAPTION_WEIGHT}, {TITLE_WEIGHT})"
"""SQL expression for BM25. Its arguments are the weights of a word in the title, the caption and the keywords. The
weight of the caption is low, because the caption adds little information to the embedding, which the same model
computed."""
_MAX_LENGTH = 1.1
"""Maximum length of an embedding. Embeddings have unit length, apart from rounding, so longer vectors are corrupt."""
_MAX_BLOCKS_NAMED = 3
ROWS_PER_READ = 2048
"""Maximum number of rows that are read from the database or the vector file at a time."""
MAX_WORDS = 32
"""Maximum number of words of a text that are looked up. SQLite compares every image that contains at least one of the
words with all of the words. In a large index, a search for a pasted page of text would therefore take minutes, and
would block all other searches."""


class Snapshot(NamedTuple):
    """Read transaction: a connection that no other thread uses until the transaction ends, and the index's state."""

    database: sqlite3.Connection
    state: State


class EmbeddedStore(Store):
    """Index in a folder. Each snapshot has a separate connection, so threads do not wait for each other.

    The first `claim`, `commit` or `compact` acquires the writer lock, which is held until the store is closed.

    Raises:
        UserError: If the folder has no index, or an index that is corrupt or that this version cannot read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = _identity(folder)
        database = open_database(folder)
        try:
            with database_errors(folder):
                header = read_header(database, folder)
        except UserError:
            database.close()
            raise
        super().__init__(str(folder), header)
        self._idle = [database]
        self._is_closed = False
        self._state: State | None = None
        self._writer: Writer | None = None
        self._lock, self._writing = threading.Lock(), threading.RLock()

    @classmethod
    def open(cls, location: str, *, is_optional: bool = False) -> "EmbeddedStore | None":
        """Open the index in a folder. Return None if the index is optional and the folder is empty or missing.

        A folder that has only files of an interrupted `create` counts as empty.

        Raises:
            UserError: If the index is not found, corrupt or written by a newer version, or if the location is a file or
                a folder with other files.
        """
        folder = Path(location)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: expected an index folder, found a file; pass another path")
        if is_optional and not (folder / FILE).exists():
            if folder.exists() and not has_no_other_files(folder):
                raise UserError(f"{folder}: contains other files, not an index; pass an empty or new folder")
            return None
        return cls(folder)

    @classmethod
    def create(cls, location: str, header: Header) -> "EmbeddedStore":
        """Create an index in a folder, and open it. If the folder already has an index, that index is opened.

        Raises:
            UserError: If the disk is full or cannot be written to, or another process is creating an index there.
        """
        create_database(Path(location), header)
        return cls(Path(location))

    @classmethod
    def remove(cls, location: str) -> None:
        """Remove an index, and its folder if it is empty afterwards.

        Raises:
            UserError: If a file cannot be removed.
        """
        remove_database(Path(location))

    @classmethod
    def is_there(cls, location: str) -> bool:
        """Return whether a folder has an index."""
        return (Path(location) / FILE).is_file()

    @property
    def is_replaced(self) -> bool:
        """Whether the database file has been replaced or removed."""
        return _identity(self._folder) != self._identity

    def close(self) -> None:
        """Close the files, and release the writer lock.

        The connection of a snapshot that is still in use is closed when the snapshot ends.
        """
        with self._writing, self._lock:
            self._is_closed = True
            for database in self._idle:
                database.close()
            self._state = None  # closes the vector file
            if self._writer is not None:
                self._writer.release()
                self._writer = None

    @contextmanager
    def begin(self) -> Iterator[Snapshot]:
        """Begin a read transaction, which sees the newest commit, and end it when the context ends.

        SQLite and system errors in the context become a `UserError`.
        """
        with database_errors(self._folder):
            with self._lock:
                idle = self._idle.pop() if self._idle else None
            database = open_database(self._folder) if idle is None else idle
            try:
                with self._lock:
                    self._state = state = self._begin_transaction(database)
                try:
                    yield Snapshot(database, state)
                finally:
                    if database.in_transaction:
                        database.execute("ROLLBACK")
            finally:
                with self._lock:
                    self._idle.append(database)
                    if self._is_closed:
                        database.close()

    def _begin_transaction(self, database: sqlite3.Connection) -> State:
        """Begin a transaction, and return the state that the transaction sees."""
        while True:
            database.execute("BEGIN")
            try:
                return State.read(database, self._folder, self.header.embed_dim, self._state)
            except FileNotFoundError:
                # The writer has rewritten the vectors in the meantime, so begin again with the newer state.
                (revision,) = database.execute("SELECT revision FROM state").fetchone()
                database.execute("ROLLBACK")
                if (revision,) == database.execute("SELECT revision FROM state").fetchone():
                    raise
            except BaseException:
                database.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        """Return the number of images."""
        with self.snapshot() as now:
            return now.state.row.live

    # --- Reading

    def get(self, ids: Sequence[int], *, vectors: bool = False) -> Iterator[StoredImage]:
        """Yield the images with the given ids, in any order. Ids that are not in the index are skipped."""
        for chunk in chunks(ids, _MAX_PARAMETERS):
            yield from self._rows(f"WHERE id IN ({_placeholders(chunk)})", chunk, vectors)

    def scan(self, where: Filter | None = None, *, vectors: bool = False) -> Iterator[StoredImage]:
        """Return all images that match a filter, in the order of their ids."""
        condition, values = _where(where)
        return self._rows(f"WHERE {condition} ORDER BY id", values, vectors)

    def _rows(self, rest: str, values: Sequence[object], vectors: bool) -> Iterator[StoredImage]:
        with self.reading() as now:
            cursor = now.database.execute(f"{READ} {rest}", values)
            while rows := cursor.fetchmany(ROWS_PER_READ):
                kept = now.state.vectors.rows([row[0] - 1 for row in rows]) if vectors else repeat(None)
                for row, vector in zip(rows, kept, strict=False):
                    yield StoredImage(row[0], from_row(row, self._folder), vector)

    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """Return the images whose embeddings have the largest dot products with a vector, best first.

        Raises:
            CorruptDataError: If a dot product is larger than embeddings of unit length allow, or the vector file is too
                short.
        """
        with self.snapshot() as now:
            state = now.state
            scores = products(state.vectors, vector[None])[:, 0]
            allowed = state.live if where is None else _matching_rows(now, where)
            scores = np.where(allowed, scores, 0)
            # Embeddings have unit length, so a larger score is a sign of corruption. `products` converts NaN and
            # infinity to large numbers.
            if len(scores) and not max(scores.max(), -scores.min()) <= _MAX_LENGTH * np.linalg.norm(vector):
                raise self._vectors_error(now)
            rows = top_k_rows(np.where(allowed, scores, -np.inf), count)
            return [Match(int(row) + 1, float(scores[row])) for row in rows]

    def _vectors_error(self, now: Snapshot) -> CorruptDataError:
        """Return the error that reports corrupt vectors."""
        vectors = now.state.vectors
        damaged = list(corrupt_blocks(read_blocks(now.database, now.state.row.generation), vectors))
        where = ", ".join(f"rows {block.first + 1:,} to {block.end:,}" for block in damaged[:_MAX_BLOCKS_NAMED])
        what = f"{where} differ from the rows that were written" if damaged else "some rows are not embeddings"
        return CorruptDataError(f"{vectors.path}: corrupt: {what}; {how_to_restore(self._folder)}")

    def word_matches(self, text: str, count: int, where: Filter | None = None) -> list[Match]:
        """Return the images that best match the words of a text, even if they do not contain all of the words.

        They are sorted by BM25, best first. Only the first `MAX_WORDS` different words count.
        """
        words = _words(text)
        if not words:
            return []
        condition, values = _where(where)
        join = "" if where is None else f"JOIN pictures ON pictures.id = words.rowid AND {condition}"
        # Within double quotes, FTS5 does not interpret a word as a keyword of its query language.
        query = " OR ".join(f'"{word}"' for word in words)
        statement = (
            f"SELECT words.rowid, -rank FROM words {join} WHERE words MATCH ? AND rank MATCH ? ORDER BY rank LIMIT ?"
        )
        with self.snapshot() as now:
            found = now.database.execute(statement, [*values, query, _BM25, count])
            return [Match(identity, score) for identity, score in found]

    @property
    def _missing_image_hint(self) -> str:  # type: ignore[override]
        return (
            "; they were removed, or the full-text index is corrupt; search again, or check it: "
            f"grr-coca index --check --out {self.location}"
        )

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Return the embeddings of the images with the given ids, in the same order, as float32, N E."""
        with self.snapshot() as now:
            return now.state.vectors.rows(np.asarray(ids, np.int64) - 1).astype(np.float32)

    def sample(self) -> LibrarySample:
        """Return a random sample of the images, which stays the same until the next commit."""
        with self.snapshot() as now:
            return now.state.sample(now.database)

    def columns(self) -> frozenset[str]:
        """Return the names of all fields from tables, including those of images that were removed.

        Raises:
            CorruptDataError: If a name is not a text.
        """
        with self.snapshot() as now:
            names = frozenset(name for (name,) in now.database.execute("SELECT name FROM columns"))
        if not all(isinstance(name, str) for name in names):
            raise self._database_error("the name of a field is not a text")
        return names

    def revision(self) -> str:
        """Return the revision: the number of rewrites of the vector file, a dot, and the number of commits."""
        with self.snapshot() as now:
            return f"{now.state.row.generation}.{now.state.row.revision}"

    def ids_of(self, draws: Sequence[int]) -> dict[int, int]:
        """Return a mapping from the `Entry.name_hash` of images to their ids. Unknown hashes are omitted."""
        found: dict[int, int] = {}
        with self.snapshot() as now:
            for chunk in chunks(draws, _MAX_PARAMETERS):
                statement = f"SELECT draw, id FROM pictures WHERE draw IN ({_placeholders(chunk)})"
                found |= dict(now.database.execute(statement, chunk))
        return found

    def newest_first(self, where: Filter | None = None) -> np.ndarray:
        """Return the ids of all images that match a filter, newest first. Images of one date are sorted by name."""
        condition, values = _where(where)
        with self.snapshot() as now:
            rows = now.database.execute(f"SELECT id FROM pictures WHERE {condition} ORDER BY date DESC, name", values)
            return np.fromiter((identity for (identity,) in rows), np.int64)

    def summaries(self, fields: Iterable[str], count: int, where: Filter | None = None) -> dict[str, FieldSummary]:
        """Summarize the values of some fields, by field. SQLite counts the values, which is faster than a scan."""
        return {field: self._summary(field, count, where) for field in fields}

    def _summary(self, field: str, count: int, where: Filter | None) -> FieldSummary:
        names: list[FieldValue] = []
        column = "value" if field in MULTI_VALUED_FIELDS else f"{_column(field, names)} AS value"
        condition, values = _where(where)
        pictures = f"(SELECT * FROM pictures WHERE {condition}) AS pictures"
        found = f"(SELECT {column} FROM {pictures}{f', {_values_of(field)}' if field in MULTI_VALUED_FIELDS else ''})"
        bound = [*names, *values]
        with self.snapshot() as now:
            (number, different, low, high, texts) = now.database.execute(
                "SELECT COUNT(value), COUNT(DISTINCT value), MIN(value), MAX(value), SUM(typeof(value) = 'text') "
                f"FROM {found}",
                bound,
            ).fetchone()
            most = now.database.execute(
                f"SELECT value, COUNT(*) FROM {found} WHERE value IS NOT NULL "
                "GROUP BY value ORDER BY 2 DESC, 1 LIMIT ?",
                [*bound, count],
            ).fetchall()
        return FieldSummary("text" if texts else "number", most, number == different, low, high)

    def hashes(self) -> np.ndarray:
        """Return the ids, perceptual hashes and digests of all images: N rows of `HASH_ROW`, sorted by id.

        Raises:
            CorruptDataError: If a hash or digest is invalid.
        """
        with self.snapshot() as now:
            rows = now.database.execute("SELECT id, phash, digest FROM pictures ORDER BY id")
            try:
                return np.fromiter(rows, HASH_ROW)
            except (TypeError, ValueError, OverflowError) as error:
                raise self._database_error(f"an invalid hash ({error})") from error

    def failures(self, names: Sequence[str] | None = None) -> list[Failure]:
        """Return the images that could not be read, sorted by name: all of them, or those with the given names."""
        parts = (
            [("1", [])]
            if names is None
            else [
                (f"name IN ({_placeholders(chunk, _TEXT)})", chunk)
                for chunk in chunks(map(sql_text, names), _MAX_PARAMETERS)
            ]
        )
        with self.snapshot() as now:
            return sorted(
                Failure(name, root, None if size is None else Stamp(size, mtime_ns), message)
                for condition, values in parts
                for name, root, size, mtime_ns, message in now.database.execute(
                    f"SELECT name, root, size, mtime_ns, message FROM failures WHERE {condition}", values
                )
            )

    def notes(self) -> dict[str, str]:
        """Return the notes on the index by key. The values of the header are also included."""
        with self.snapshot() as now:
            return dict(now.database.execute("SELECT key, value FROM header"))

    def known(self, names: Sequence[str]) -> dict[str, ImageState]:
        """Return the known state of the given images, by name; see `Store.known`.

        Raises:
            CorruptDataError: If the fields of an image are invalid.
        """
        with self.snapshot() as now:
            found = {one.name: ImageState(one.stamp, "") for one in self.failures(names) if one.stamp is not None}
            for chunk in chunks(map(sql_text, names), _MAX_PARAMETERS):
                rows = now.database.execute(
                    "SELECT name, size, mtime_ns, digest, fields, json_extract(photo, '$.sidecars') FROM pictures "
                    f"WHERE name IN ({_placeholders(chunk, _TEXT)})",
                    chunk,
                )
                for name, size, mtime_ns, digest, fields, sidecars in rows:
                    try:
                        found[name] = ImageState(Stamp(size, mtime_ns), digest, fields_of_row(fields), sidecars)
                    except PARSE_ERRORS as error:
                        raise self._database_error(f"the fields of {name} are invalid ({error})") from error
        return found

    def roots(self) -> list[str]:
        """Return the arguments (files, folders, patterns) through which images or failures were found, sorted."""
        with self.snapshot() as now:
            statement = "SELECT root FROM pictures UNION SELECT root FROM failures ORDER BY 1"
            return [root for (root,) in now.database.execute(statement)]

    def locations(self, root: str) -> Iterator[ImageLocation]:
        """Yield the locations of the images and failures that were found through an argument."""
        yield from (ImageLocation.of(*row) for *row, _ in self._read_pages(IMAGES_OF, root, 0))
        yield from (ImageLocation.of_name(name) for name, _ in self._read_pages(FAILURES_OF, root, b""))

    def _read_pages(self, statement: str, root: str, first: int | bytes) -> Iterator[tuple]:
        """Yield the rows that `IMAGES_OF` or `FAILURES_OF` returns for an argument (`root`), starting after `first`.

        Each page of rows is read in a separate snapshot, because a long snapshot would prevent SQLite's checkpoints.
        """
        last = first
        while True:
            with self.snapshot() as now:
                rows = now.database.execute(statement, (sql_text(root), last, ROWS_PER_READ)).fetchall()
            if not rows:
                break
            yield from rows
            last = rows[-1][-1]

    def check(self) -> CheckedIndex:
        """Read all data, and compare the data with the checksums. This may take minutes.

        Raises:
            CorruptDataError: If the database or the vector file is corrupt.
        """
        # A new connection is used, because SQLite reports the full-text index as corrupt if the same connection has
        # read it before another connection wrote to it.
        with EmbeddedStore(self._folder) as fresh:
            return fresh._check_all()

    def _check_all(self) -> CheckedIndex:
        with self.snapshot() as now:
            self._check_database(now)
            vectors, blocks = now.state.vectors, read_blocks(now.database, now.state.row.generation)
            if next(corrupt_blocks(blocks, vectors), None) is not None:
                raise self._vectors_error(now)
            covered = blocks[-1].end if blocks else 0
            for start in range(0, len(vectors), ROWS_PER_READ):
                stop = min(start + ROWS_PER_READ, len(vectors))
                lengths = np.linalg.norm(vectors.read(start, stop).astype(np.float32), axis=1)
                if not np.all(lengths[now.state.live[start:stop]] <= _MAX_LENGTH):
                    raise self._vectors_error(now)
            return CheckedIndex(images=now.state.row.live, without_checksum=len(vectors) - covered)

    def _check_database(self, now: Snapshot) -> None:
        found = [text for (text,) in now.database.execute("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            raise self._database_error("; ".join(found))
        count, committed = sum(1 for _ in self.everything()), now.state.row.live
        (same,) = now.database.execute("SELECT COUNT(*) FROM pictures WHERE draw IS NOT NULL").fetchone()
        if not count == same == committed == int(now.state.live.sum()):
            raise self._database_error(f"it has {count:,} of {committed:,} committed images")

    def _database_error(self, what: str) -> CorruptDataError:
        return CorruptDataError(f"{self._folder / FILE}: corrupt: {what}; {how_to_restore(self._folder)}")

    # --- Writing

    def claim(self) -> None:
        """Acquire the writer lock, unless this store already holds it.

        Raises:
            UserError: If another process is writing (the message names the process), or the index cannot be written.
        """
        with self._writing, database_errors(self._folder):
            self._require_writer()

    def commit(self, changes: Changes) -> None:
        """Write changes, and wait until they are on disk. If this raises an error, no change has been written.

        Raises:
            UserError: If another process is writing, the disk is full, or the index is corrupt.
        """
        with self._writing, database_errors(self._folder):
            self._require_writer().commit(changes)

    def compact(self) -> bool:
        """Rewrite the vector file if most of its rows belong to removed images; see `Writer.compact`.

        Return whether the file was rewritten.

        Raises:
            UserError: For the same reasons as `commit`.
        """
        with self._writing, database_errors(self._folder):
            return self._require_writer().compact()

    def _require_writer(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self._folder, self.header.embed_dim)
        return self._writer


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return the device and inode of the database file, which change if it is replaced, or None if it is missing."""
    with suppress(OSError):
        status = (folder / FILE).stat()
        return status.st_dev, status.st_ino
    return None


def _matching_rows(now: Snapshot, where: Filter) -> np.ndarray:
    condition, values = _where(where)
    found = now.database.execute(f"SELECT id FROM pictures WHERE {condition}", values)
    allowed = np.zeros(len(now.state.live), bool)
    allowed[np.fromiter((identity for (identity,) in found), np.int64) - 1] = True
    return allowed


def _where(where: Filter | None) -> tuple[str, list[object]]:
    """Return the SQL condition of a filter, and the values of its placeholders."""
    condition, values = ("1", []) if where is None else to_sql(where)
    return condition, [sql_text(value) if isinstance(value, str) else value for value in values]


def _placeholders(items: Sequence[object], mark: str = "?") -> str:
    return ", ".join([mark] * len(items))


def _words(text: str) -> list[str]:
    """Return the first `MAX_WORDS` different words of a text, in lower case."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.lower())))[:MAX_WORDS]


# --- Filters as SQL. Every value is a parameter of the statement

_TEXT = "CAST(? AS TEXT)"
"""Placeholder for a text. If the value is bytes, because it is a file name that is not UTF-8, SQLite converts it to
text."""


def to_sql(tree: Filter) -> tuple[str, list[FieldValue]]:
    """Convert a filter to an SQL condition, and the values of its placeholders."""
    values: list[FieldValue] = []
    return _condition(tree, values), values


def _condition(tree: Filter, values: list[FieldValue]) -> str:
    if isinstance(tree, And | Or):
        word = " AND " if isinstance(tree, And) else " OR "
        return "(" + word.join(_condition(part, values) for part in tree.parts) + ")"
    if isinstance(tree, Not):
        return f"NOT {_condition(tree.inner, values)}"
    if isinstance(tree, Comparison):
        return _field_condition(tree.field, f"{{}} {tree.operator} {_parameter(tree.value)}", [tree.value], values)
    if isinstance(tree, OneOf):
        # One `IN` for texts and one for numbers, because SQLite limits the depth of `OR` chains.
        kinds = [[v for v in tree.values if isinstance(v, str) is is_text] for is_text in (True, False)]
        tests = [
            _field_condition(tree.field, f"{{}} IN ({', '.join(map(_parameter, kind))})", kind, values)
            for kind in kinds
            if kind
        ]
        return f"({' OR '.join(tests)})"
    assert isinstance(tree, Like)
    return _field_condition(tree.field, f"substr({{}}, 1, ?) = {_TEXT}", [len(tree.prefix), tree.prefix], values)


def _values_of(field: str) -> str:
    """Return an SQL expression whose rows are the values of a field in `MULTI_VALUED_FIELDS`.

    If a user's table has a column of the same name, its cell is the only value.
    """
    kept = f"pictures.fields, '$.\"{MODEL_FIELDS}\".{field}'"
    if FIELDS[field].source == "file":
        kept = f"pictures.photo, '$.{field}'"
    return f"""json_each(CASE WHEN json_type(pictures.fields, '$.{field}') IS NULL
        THEN COALESCE(json_extract({kept}), '[]')
        ELSE json_array(json_extract(pictures.fields, '$.{field}')) END)"""


def _field_condition(field: str, test: str, given: Sequence[FieldValue], values: list[FieldValue]) -> str:
    """Return an SQL condition that tests a field.

    The condition is false, not NULL, for images that do not have the field, or whose value has the other kind (text or
    number).

    Args:
        field: Name of the field.
        test: SQL condition, with `{}` in place of the field, and a placeholder for each value in `given`.
        given: Values of the placeholders in `test`. The type of the last value determines the kind.
        values: Values of all earlier placeholders of the statement. The values of this test are appended.
    """
    kinds = "'text'" if isinstance(given[-1], str) else "'integer', 'real'"
    if field in MULTI_VALUED_FIELDS:
        values += given
        tested = f"{test.format('value')} AND typeof(value) IN ({kinds})"
        return f"EXISTS (SELECT 1 FROM {_values_of(field)} WHERE {tested})"
    tested = test.format(_column(field, values))
    values += given
    if field in COLUMNS:
        return f"({tested})"
    return f"IFNULL({tested} AND typeof({_column(field, values)}) IN ({kinds}), 0)"


def _parameter(value: FieldValue) -> str:
    return _TEXT if isinstance(value, str) else "?"


def _column(field: str, values: list[FieldValue]) -> str:
    if field in COLUMNS:
        return f"pictures.{COLUMNS[field]}"
    # The name of a field is also a parameter, so that no user input becomes part of the statement. It is escaped as in
    # the stored JSON (`\u0446` for a letter of another script), because SQLite before 3.45 compares the escaped texts.
    values.append(f"$.{json.dumps(field)}")
    if field not in FIELDS:
        return "json_extract(pictures.fields, ?)"
    is_of_model = FIELDS[field].source == "model"
    values.append(f'$."{MODEL_FIELDS}".{field}' if is_of_model else f"$.{FIELDS[field].key}")
    column = "fields" if is_of_model else "photo"
    return f"COALESCE(json_extract(pictures.fields, ?), json_extract(pictures.{column}, ?))"
