"""The store in a folder: a search is one exact matrix product, and many processes can read while one writes.

Shapes: N images, E embedding width.
"""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from grr_coca.common.errors import DamagedError, UserError
from grr_coca.search.embedded.checksums import damaged_blocks, read_blocks
from grr_coca.search.embedded.database import (
    FAILURES_OF,
    FILE,
    IMAGES_OF,
    OF_MODEL,
    READ,
    as_bytes,
    certainty_of_row,
    database_errors,
    fields_of_row,
    from_row,
    open_database,
    read_header,
)
from grr_coca.search.embedded.vectors import State, best_rows, how_to_restore, products
from grr_coca.search.embedded.writer import Writer
from grr_coca.search.entry import (
    Entry,
    Failure,
    ImagePlace,
    Stamp,
    chunks,
)
from grr_coca.search.fields import FIELDS, OWN_FIELDS, FieldValue
from grr_coca.search.filters import And, Comparison, Filter, Like, Not, OneOf, Or
from grr_coca.search.store import (
    HASHED,
    Changes,
    CheckedIndex,
    FieldSummary,
    ImageDescription,
    ImageState,
    LibrarySample,
    Match,
)

_MAX_PARAMETERS = 500
"""Maximum number of parameters of one statement. Older versions of SQLite take 999."""
TITLE_WEIGHT, CAPTION_WEIGHT = 5.0, 0.3
_BM25 = f"bm25({TITLE_WEIGHT}, {CAPTION_WEIGHT}, {TITLE_WEIGHT})"
"""The weights of a word in the title, the caption and the keywords. The caption says little that the embedding does not
say: one model made both."""
_MAX_LENGTH = 1.1
"""An embedding has unit length. One that is longer than this is damaged."""
_MAX_BLOCKS_NAMED = 3
ROWS_PER_READ = 2048
MAX_WORDS = 32
"""Maximum number of words of a text that are looked up. SQLite compares every image that has one of them with all of
them, so a pasted page of text would take minutes in a large index, while no other search is answered."""


class EmbeddedStore:
    """An index in a folder. `grr_coca.search.store.Store` documents its methods.

    The first `claim`, `commit` or `compact` takes the lock of the writer, which is held until the store is closed.

    Raises:
        UserError: the folder has no index, or one that this version cannot read.
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
        """Close the files, and release the lock of the writer."""
        with self._lock:
            self._database.close()
            self._state = State(self._folder, self.header.embed_dim)  # closes the file of vectors
            if self._writer is not None:
                self._writer.release()
                self._writer = None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One read transaction. Threads of one process take turns."""
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
                # The writer has rewritten the vectors in between: begin again with the newer state.
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

    # --- Reading

    def nearest(self, vector: np.ndarray, count: int, where: Filter | None = None) -> list[Match]:
        """The images with the largest dot products."""
        with self.snapshot():
            scores = products(self._state.vectors, vector[None])[:, 0]
            allowed = self._state.live if where is None else self._allowed(where)
            scores = np.where(allowed, scores, 0)
            # Embeddings have unit length. NaN and infinity, as `products` reads them, are large numbers.
            if len(scores) and not max(scores.max(), -scores.min()) <= _MAX_LENGTH * np.linalg.norm(vector):
                raise self._damaged()
            rows = best_rows(np.where(allowed, scores, -np.inf), count)
            return [Match(int(row) + 1, float(scores[row])) for row in rows]

    def _damaged(self) -> DamagedError:
        """The error about vectors that are none. Within a snapshot."""
        vectors = self._state.vectors
        damaged = list(damaged_blocks(read_blocks(self._database, self._state.generation), vectors))
        where = ", ".join(f"rows {block.first + 1:,} to {block.end:,}" for block in damaged[:_MAX_BLOCKS_NAMED])
        what = f"{where} are not what was written" if damaged else "some rows are no embeddings"
        return DamagedError(f"{vectors.path}: damaged: {what}; {how_to_restore(self._folder)}")

    def _allowed(self, where: Filter) -> np.ndarray:
        condition, values = to_sql(where)
        found = self._database.execute(f"SELECT id FROM pictures WHERE {condition}", _bound(values))
        allowed = np.zeros(len(self._state.live), bool)
        allowed[np.fromiter((identity for (identity,) in found), np.int64) - 1] = True
        return allowed

    def word_matches(self, text: str, count: int, where: Filter | None = None) -> list[Match]:
        """The images that match the words best. They need not contain all of them."""
        words = _words(text)
        if not words:
            return []
        join, values = "", list[FieldValue]()
        if where is not None:
            condition, values = to_sql(where)
            join = f"JOIN pictures ON pictures.id = words.rowid AND {condition}"
        # In double quotes, FTS5 does not take a word for a keyword of its query language.
        query = " OR ".join(f'"{word}"' for word in words)
        statement = (
            f"SELECT words.rowid, -rank FROM words {join} WHERE words MATCH ? AND rank MATCH ? ORDER BY rank LIMIT ?"
        )
        with self.snapshot():
            found = self._database.execute(statement, [*_bound(values), query, _BM25, count])
            return [Match(identity, score) for identity, score in found]

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """The entries of these ids."""
        found: dict[int, Entry] = {}
        with self.snapshot():
            for chunk in chunks(ids, _MAX_PARAMETERS):
                rows = self._database.execute(f"{READ} WHERE id IN ({_marks(chunk)})", chunk)
                found |= {row[0]: from_row(row) for row in rows}
        if missing := set(ids).difference(found):
            raise UserError(
                f"{self.location}: {len(missing)} images were removed meanwhile, or its index of words is damaged; "
                f"search again, or check it: grr-coca index --check --out {self.location}"
            ) from KeyError(min(missing))
        return [found[identity] for identity in ids]

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """The embeddings of these ids."""
        with self.snapshot():
            return self._state.vectors.rows(np.asarray(ids, np.int64) - 1).astype(np.float32)

    def sample(self) -> LibrarySample:
        """A random sample of the images."""
        with self.snapshot():
            return self._state.sample(self._database)

    def columns(self) -> frozenset[str]:
        """The names of all fields that come from tables."""
        with self.snapshot():
            return frozenset(name for (name,) in self._database.execute("SELECT name FROM columns"))

    def matching(self, where: Filter) -> Iterator[Entry]:
        """All images that match a filter."""
        condition, values = to_sql(where)
        with self.snapshot():
            for row in self._database.execute(f"{READ} WHERE {condition} ORDER BY id", _bound(values)):
                yield from_row(row)

    def revision(self) -> str:
        """The number of commits, and how often the vectors were rewritten."""
        with self.snapshot():
            return self._state.revision

    def ids_of(self, draws: Sequence[int]) -> dict[int, int]:
        """The ids of images, by their `Entry.draw`."""
        found: dict[int, int] = {}
        with self.snapshot():
            for chunk in chunks(draws, _MAX_PARAMETERS):
                statement = f"SELECT draw, id FROM pictures WHERE draw IN ({_marks(chunk)})"
                found |= dict(self._database.execute(statement, chunk))
        return found

    def newest_first(self, where: Filter | None = None) -> np.ndarray:
        """The ids of all images that match a filter, the newest first."""
        condition, values = ("1", []) if where is None else to_sql(where)
        statement = f"SELECT id FROM pictures WHERE {condition} ORDER BY date DESC, name"
        with self.snapshot():
            rows = self._database.execute(statement, _bound(values))
            return np.fromiter((identity for (identity,) in rows), np.int64)

    def summary(self, field: str, count: int) -> FieldSummary:
        """The values of a field."""
        names: list[FieldValue] = []
        if field == "keywords":
            found = f"(SELECT value FROM pictures, {_KEYWORDS})"
        else:
            found = f"(SELECT {_column(field, names)} AS value FROM pictures)"
        with self.snapshot():
            (number, different, low, high, texts) = self._database.execute(
                "SELECT COUNT(value), COUNT(DISTINCT value), MIN(value), MAX(value), SUM(typeof(value) = 'text') "
                f"FROM {found}",
                names,
            ).fetchone()
            most = self._database.execute(
                f"SELECT value, COUNT(*) FROM {found} WHERE value IS NOT NULL "
                "GROUP BY value ORDER BY 2 DESC, 1 LIMIT ?",
                [*names, count],
            ).fetchall()
        return FieldSummary("text" if texts else "number", most, number == different, low, high)

    def hashes(self) -> np.ndarray:
        """Ids, perceptual hashes and digests of all images."""
        with self.snapshot():
            rows = self._database.execute("SELECT id, phash, digest FROM pictures ORDER BY id")
            try:
                return np.fromiter(rows, HASHED)
            except (TypeError, ValueError, OverflowError) as error:
                raise self._damaged_database(f"a hash that is none ({error})") from error

    def everything(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """All entries with their embeddings, in the order of their ids."""
        with self.snapshot():
            cursor = self._database.execute(f"{READ} ORDER BY id")
            while rows := cursor.fetchmany(ROWS_PER_READ):
                vectors = self._state.vectors.rows([row[0] - 1 for row in rows])
                yield from zip(map(from_row, rows), vectors, strict=True)

    def failures(self) -> list[Failure]:
        """The images that could not be read."""
        with self.snapshot():
            rows = self._database.execute("SELECT name, root, size, mtime_ns, message FROM failures ORDER BY name")
            return [
                Failure(name, root, None if size is None else Stamp(size, mtime_ns), message)
                for name, root, size, mtime_ns, message in rows
            ]

    def known(self, names: Sequence[str]) -> dict[str, ImageState]:
        """The known state of these images, by name."""
        found: dict[str, ImageState] = {}
        with self.snapshot():
            for chunk in chunks(map(as_bytes, names), _MAX_PARAMETERS):
                for table, described in (
                    ("failures", "'', NULL, NULL"),
                    ("pictures", "digest, fields, json_extract(photo, '$.sidecars')"),
                ):
                    rows = self._database.execute(
                        f"SELECT name, size, mtime_ns, {described} FROM {table} "
                        f"WHERE name IN ({_marks(chunk, 'CAST(? AS TEXT)')}) AND size IS NOT NULL",
                        chunk,
                    )
                    for name, size, mtime_ns, digest, fields, sidecars in rows:
                        found[name] = ImageState(Stamp(size, mtime_ns), digest, fields_of_row(fields), sidecars)
        return found

    def twins(self, digests: Sequence[str]) -> dict[str, ImageDescription]:
        """Caption and embedding of images with these digests, by digest."""
        found: dict[str, ImageDescription] = {}
        with self.snapshot():
            for chunk in chunks(digests, _MAX_PARAMETERS):
                rows = self._database.execute(
                    f"SELECT id, digest, caption, fields FROM pictures WHERE digest IN ({_marks(chunk)})", chunk
                )
                for identity, digest, caption, fields in rows:
                    (embedding,) = self._state.vectors.rows([identity - 1])
                    found[digest] = ImageDescription(caption, embedding, certainty_of_row(fields))
        return found

    def roots(self) -> list[str]:
        """The arguments (files, folders, patterns) through which images or failures were found."""
        with self.snapshot():
            statement = "SELECT root FROM pictures UNION SELECT root FROM failures ORDER BY 1"
            return [root for (root,) in self._database.execute(statement)]

    def places(self, root: str) -> Iterator[ImagePlace]:
        """The places of the images and failures that were found through an argument."""
        yield from (ImagePlace.of(*row) for *row, _ in self._pages(IMAGES_OF, root, 0))
        yield from (ImagePlace.of_name(name) for name, _ in self._pages(FAILURES_OF, root, b""))

    def _pages(self, statement: str, root: str, first: int | bytes) -> Iterator[tuple]:
        """The rows of an argument. They are read page by page, so that a writer can commit in between."""
        last = first
        while True:
            with self.snapshot():
                rows = self._database.execute(statement, (as_bytes(root), last, ROWS_PER_READ)).fetchall()
            if not rows:
                break
            yield from rows
            last = rows[-1][-1]

    def excluded(self) -> tuple[str, ...]:
        """The patterns of what updates leave out."""
        with self.snapshot():
            row = self._database.execute("SELECT value FROM header WHERE key = 'exclude'").fetchone()
            return tuple(json.loads(row[0])) if row else ()

    def check(self) -> CheckedIndex:
        """Read everything, and compare it with its checksums."""
        with self.snapshot():
            self._check_database()
            vectors, blocks = self._state.vectors, read_blocks(self._database, self._state.generation)
            if next(damaged_blocks(blocks, vectors), None) is not None:
                raise self._damaged()
            covered = blocks[-1].end if blocks else 0
            for start in range(0, len(vectors), ROWS_PER_READ):
                stop = min(start + ROWS_PER_READ, len(vectors))
                lengths = np.linalg.norm(vectors.read(start, stop).astype(np.float32), axis=1)
                if not np.all(lengths[self._state.live[start:stop]] <= _MAX_LENGTH):
                    raise self._damaged()
            return CheckedIndex(images=self._state.count, without_checksum=len(vectors) - covered)

    def _check_database(self) -> None:
        found = [text for (text,) in self._database.execute("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            raise self._damaged_database("; ".join(found))
        count = sum(1 for _ in self.everything())
        (same,) = self._database.execute("SELECT COUNT(*) FROM pictures WHERE draw IS NOT NULL").fetchone()
        if not count == same == self._state.count == int(self._state.live.sum()):
            raise self._damaged_database(f"{count:,} images, of {self._state.count:,} that were committed")

    def _damaged_database(self, what: str) -> DamagedError:
        return DamagedError(f"{self._folder / FILE}: damaged: {what}; {how_to_restore(self._folder)}")

    def was_imported(self) -> bool:
        """True if it was made of a file from elsewhere."""
        with self.snapshot():
            return self._database.execute("SELECT 1 FROM header WHERE key = 'imported'").fetchone() is not None

    # --- Writing

    def claim(self) -> None:
        """Take the lock of the writer."""
        with self._lock, database_errors(self._folder):
            self._claimed()

    def commit(self, changes: Changes) -> None:
        """Write changes, and wait until they are on the disk."""
        with self._lock, database_errors(self._folder):
            self._claimed().commit(changes)

    def exclude(self, patterns: Sequence[str]) -> None:
        """Remember patterns."""
        with self._lock, database_errors(self._folder):
            self._claimed()
            self._database.execute("INSERT OR REPLACE INTO header VALUES ('exclude', ?)", (json.dumps(list(patterns)),))

    def mark_as_imported(self) -> None:
        """Remember that it was made of a file from elsewhere."""
        with self._lock, database_errors(self._folder):
            self._claimed()
            self._database.execute("INSERT OR REPLACE INTO header VALUES ('imported', 'yes')")

    def compact(self) -> bool:
        """Rewrite the file of vectors if more than half of its rows are of removed images."""
        with self._lock, database_errors(self._folder):
            return self._claimed().compact()

    def _claimed(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self._folder, self._database, self.header.embed_dim)
        return self._writer


def _bound(values: Sequence[object]) -> list[object]:
    return [as_bytes(value) if isinstance(value, str) else value for value in values]


def _marks(items: Sequence[object], mark: str = "?") -> str:
    return ", ".join([mark] * len(items))


def _words(text: str) -> list[str]:
    """The first words of a text in lower case, without repetition."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.lower())))[:MAX_WORDS]


# --- Filters as SQL. Every value is a parameter of the statement.

_TEXT = "CAST(? AS TEXT)"
"""A text as a parameter. The bytes of a file name that is not UTF-8 become a text too."""


def to_sql(tree: Filter) -> tuple[str, list[FieldValue]]:
    """The condition of a filter, and the values for its question marks."""
    values: list[FieldValue] = []
    return _condition(tree, values), values


def _condition(tree: Filter, values: list[FieldValue]) -> str:
    if isinstance(tree, And | Or):
        word = " AND " if isinstance(tree, And) else " OR "
        return "(" + word.join(_condition(part, values) for part in tree.parts) + ")"
    if isinstance(tree, Not):
        return f"NOT {_condition(tree.inner, values)}"
    if isinstance(tree, Comparison):
        return _comparison(tree.field, tree.operator, tree.value, values)
    if isinstance(tree, OneOf):
        kinds = [[v for v in tree.values if isinstance(v, str) is is_text] for is_text in (True, False)]
        return "(" + " OR ".join(_is_one_of(tree.field, kind, values) for kind in kinds if kind) + ")"
    assert isinstance(tree, Like)
    if tree.field == "keywords":
        values += [len(tree.prefix), tree.prefix]
        return _of_keywords(f"substr(value, 1, ?) = {_TEXT}")
    column = _column(tree.field, values)
    values += [len(tree.prefix), tree.prefix]
    return _of_kind(f"substr({column}, 1, ?) = {_TEXT}", tree.field, tree.prefix, values)


_KEYWORDS = """json_each(CASE json_type(pictures.fields, '$.keywords')
    WHEN 'text' THEN json_array(json_extract(pictures.fields, '$.keywords'))
    ELSE COALESCE(json_extract(pictures.photo, '$.keywords'), '[]') END)"""
"""The keywords of an image as rows. A column of its table that is called so counts, as one text."""


def _of_keywords(test: str) -> str:
    return f"EXISTS (SELECT 1 FROM {_KEYWORDS} WHERE {test})"


def _comparison(field: str, operator: str, value: FieldValue, values: list[FieldValue]) -> str:
    if field == "keywords":
        values.append(value)
        return _of_keywords(f"value {operator} {_parameter(value)}")
    column = _column(field, values)
    values.append(value)
    return _of_kind(f"{column} {operator} {_parameter(value)}", field, value, values)


def _is_one_of(field: str, of_a_kind: Sequence[FieldValue], values: list[FieldValue]) -> str:
    """The SQL test that a field has one of several values: a single `IN`, as SQLite limits the depth of `OR` chains."""
    if field == "keywords":
        values += of_a_kind
        return _of_keywords(f"value IN ({', '.join(map(_parameter, of_a_kind))})")
    column = _column(field, values)
    values += of_a_kind
    return _of_kind(f"{column} IN ({', '.join(map(_parameter, of_a_kind))})", field, of_a_kind[0], values)


def _parameter(value: FieldValue) -> str:
    return _TEXT if isinstance(value, str) else "?"


def _of_kind(test: str, field: str, value: FieldValue, values: list[FieldValue]) -> str:
    """Extend a SQL test to give false, not NULL, for images whose field is missing or of the other kind (text or
    number)."""
    if field in OWN_FIELDS:
        return f"({test})"
    kinds = "'text'" if isinstance(value, str) else "'integer', 'real'"
    typed = _column(field, values)
    return f"IFNULL({test} AND typeof({typed}) IN ({kinds}), 0)"


def _column(field: str, values: list[FieldValue]) -> str:
    if field in OWN_FIELDS:
        return f"pictures.{FIELDS[field].key}"
    # The name of a field is a parameter too: nothing that a user has written becomes part of the statement. SQLite
    # before 3.45 compares it with the JSON as it is written, with letters of other scripts escaped.
    values.append(f"$.{json.dumps(field)}")
    if field not in FIELDS:
        return "json_extract(pictures.fields, ?)"
    is_of_model = FIELDS[field].source == "model"
    values.append(f'$."{OF_MODEL}".{field}' if is_of_model else f"$.{FIELDS[field].key}")
    column = "fields" if is_of_model else "photo"
    return f"COALESCE(json_extract(pictures.fields, ?), json_extract(pictures.{column}, ?))"
