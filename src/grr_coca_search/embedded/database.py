"""Database `index.sqlite`: create and open it, convert entries to rows and back, and acquire the writer lock.

The id of an image is 1 plus the number of its row in the vector file. An image that is embedded again gets a new row,
and the table `gone` records its old id together with the revision of the change, so that readers of an earlier state
notice the change. `words` is the full-text index of file names, captions and user metadata.
"""

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grr_coca.common.errors import CorruptDataError, UserError
from grr_coca.common.files import replace_file
from grr_coca.common.locks import LockHeldError, ProcessLock
from grr_coca.data.tokenizer import split_name
from grr_coca_search.embedded.vectors import how_to_restore
from grr_coca_search.entry import (
    MAX_WIDTH,
    Entry,
    Header,
    Photo,
    Stamp,
    confidence_fields,
    confidence_from_fields,
    os_bytes,
    require_supported,
)
from grr_coca_search.fields import FieldValue

FILE = "index.sqlite"
_LOCK = "writer.lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Error codes of file systems that do not support locks."""
_PARTIAL = f".{FILE}.partial"
"""Name of the database until it is complete, and prefix of the files that SQLite creates next to it."""
_SECONDS_TO_WAIT = 30.0
"""Maximum time to wait for a commit of another process. A commit normally takes milliseconds."""
_CORRUPTION_WORDS = ("malformed", "not a database", "no such table", "no such column")
"""Parts of SQLite messages that report a corrupt database."""

MODEL_FIELDS = "of model"
"""Key of the model's estimates (confidence and tags) in the column `fields`. It cannot be the name of a field, because
names of fields do not contain spaces."""

_APPLICATION_ID = 0x67726369
"""Application id that marks the file as an index: `grci`."""

_SCHEMA = """
CREATE TABLE header (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL,   -- number of commits
    generation INTEGER NOT NULL, -- number of times that the file of vectors was rewritten
    rows INTEGER NOT NULL,       -- of the file of vectors; any rows after these were never committed
    live INTEGER NOT NULL        -- images
);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    root TEXT NOT NULL,
    file TEXT NOT NULL,
    "offset" INTEGER,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    date TEXT NOT NULL,
    folder TEXT NOT NULL,
    digest TEXT NOT NULL,
    phash INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    caption TEXT NOT NULL,
    draw INTEGER NOT NULL,
    fields TEXT,
    photo TEXT,                       -- what the camera and people wrote, as JSON; NULL if it was not read yet
    keywords TEXT NOT NULL DEFAULT '', -- the words of that
    look BLOB                         -- the small copy by which copies of pictures are found; NULL if it is not known
);
CREATE INDEX pictures_digest ON pictures (digest);
CREATE INDEX pictures_root ON pictures (root);
CREATE INDEX pictures_draw ON pictures (draw);
CREATE TABLE gone (id INTEGER PRIMARY KEY, revision INTEGER NOT NULL);
CREATE TABLE failures (
    name TEXT PRIMARY KEY, root TEXT NOT NULL, size INTEGER, mtime_ns INTEGER, message TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE columns (name TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO state VALUES (1, 0, 0, 0, 0);
"""

_WORDS = """
CREATE VIRTUAL TABLE words USING fts5(
    title, caption, keywords, content='pictures', content_rowid='id',
    tokenize='porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER pictures_added AFTER INSERT ON pictures BEGIN
    INSERT INTO words (rowid, title, caption, keywords) VALUES (new.id, new.title, new.caption, new.keywords);
END;
CREATE TRIGGER pictures_removed AFTER DELETE ON pictures BEGIN
    INSERT INTO words (words, rowid, title, caption, keywords)
    VALUES ('delete', old.id, old.title, old.caption, old.keywords);
END;
CREATE TRIGGER pictures_noted AFTER UPDATE OF keywords ON pictures BEGIN
    INSERT INTO words (words, rowid, title, caption, keywords)
    VALUES ('delete', old.id, old.title, old.caption, old.keywords);
    INSERT INTO words (rowid, title, caption, keywords) VALUES (new.id, new.title, new.caption, new.keywords);
END;
"""

ADD = """
INSERT INTO added (id, name, title, root, file, "offset", size, mtime_ns, date, folder, digest, phash, width, height,
    caption, draw, fields, photo, keywords, look)
VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?,
    CAST(? AS TEXT), ?, ?, ?, ?, ?)
"""
"""Statement that inserts an image. Its parameters are the id and the values of `to_row`. The texts are cast, because a
file name that is not UTF-8 is passed as bytes.

The writer first inserts images into its temporary table `added`, and then copies all of them to `pictures` with one
statement. SQLite writes the full-text index once per statement, which takes most of the time of adding images.
"""

READ = """
SELECT id, name, root, file, "offset", size, mtime_ns, digest, phash, width, height, caption, fields, photo, look
FROM pictures
"""

IMAGES_OF = """
SELECT name, file, "offset", id FROM pictures WHERE root = CAST(? AS TEXT) AND id > ? ORDER BY id LIMIT ?
"""
FAILURES_OF = """
SELECT name, CAST(name AS BLOB) FROM failures WHERE root = CAST(? AS TEXT) AND name > CAST(? AS TEXT)
ORDER BY name LIMIT ?
"""
"""Statements that read a page of the images or failures that were found through an argument (`root`). The last column
of the last row is the start of the next page. The tables have indexes in this order, so SQLite need not sort the rows.
"""


def create_database(folder: Path, header: Header) -> None:
    """Create the folder and the empty database of a new index. An existing database is kept.

    The database is created under a temporary name, so that an interruption leaves no incomplete index.

    Raises:
        UserError: If the disk is full or cannot be written to, or if the writer lock cannot be acquired; see
            `lock_writer`.
    """
    with database_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_writer(folder)
        try:
            if not (folder / FILE).exists():  # otherwise, another process has created the database in the meantime
                _create(folder, header)
        finally:
            lock.release()


def remove_database(folder: Path) -> None:
    """Remove the files of an index, and its folder if it is empty afterwards.

    Raises:
        UserError: If a file cannot be removed.
    """
    with database_errors(folder):
        # The database is removed first, so that the index is gone even if a later step fails.
        for pattern in (FILE, f"{FILE}-*", f"{_PARTIAL}*", "vectors*.f16", _LOCK):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def has_no_other_files(folder: Path) -> bool:
    """Return whether a folder is empty, or contains only leftovers of an index whose creation was interrupted."""
    return all(path.name == _LOCK or path.name.startswith(_PARTIAL) for path in folder.iterdir())


def _create(folder: Path, header: Header) -> None:
    for left_behind in folder.glob(f"{_PARTIAL}*"):
        left_behind.unlink()
    partial = folder / _PARTIAL
    database = _connect(partial)
    try:
        database.executescript(f"PRAGMA journal_mode = DELETE; BEGIN; {_SCHEMA} {_WORDS}")
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {header.version}")
        values = {"model": header.model, "fingerprint": header.fingerprint, "embed_dim": str(header.embed_dim)}
        database.executemany("INSERT INTO header VALUES (?, ?)", values.items())
        database.execute("COMMIT")
        database.execute("PRAGMA journal_mode = WAL")  # allows reading while another process writes
    finally:
        database.close()
    replace_file(partial, folder / FILE)


def open_database(folder: Path) -> sqlite3.Connection:
    """Open the database of an index, without starting a transaction. It is read-only if its folder is not writable.

    Raises:
        UserError: If the database is missing, corrupt or not an index, was written by a newer version, or cannot be
            opened.
    """
    path = folder / FILE
    if not path.is_file():
        why = "no such folder" if not folder.exists() else f"not an index, because it does not contain {FILE}"
        # a new index can only be created in an empty or new folder
        out = "INDEX" if folder.is_dir() and any(folder.iterdir()) else folder
        raise UserError(f"{folder}: {why}; create an index with grr-coca index IMAGES… --out {out}")
    with database_errors(folder):
        database = _connect(path) if os.access(folder, os.W_OK) else _connect_read_only(path)
        try:
            _require_index_schema(database, folder)
            _add_signature_view(database)
        except BaseException:
            database.close()
            raise
    return database


def upgrade(database: sqlite3.Connection) -> None:
    """Add the column `look` if an older version created the index, and drop the temporary view that replaces it.

    Only the writer may call this function.
    """
    if _lacks_signatures(database):
        database.execute("ALTER TABLE main.pictures ADD COLUMN look BLOB")
    database.execute("DROP VIEW IF EXISTS temp.pictures")


def _lacks_signatures(database: sqlite3.Connection) -> bool:
    columns = database.execute("SELECT name FROM pragma_table_info('pictures', 'main')")
    return ("look",) not in columns.fetchall()


def _add_signature_view(database: sqlite3.Connection) -> None:
    """Provide the column `look` of an older index, which does not have it, through a temporary view.

    The view takes precedence over the table `pictures`, whose name it has. Other indexes are not changed.
    """
    if _lacks_signatures(database):
        database.execute("CREATE TEMP VIEW pictures AS SELECT *, NULL AS look FROM main.pictures")


def read_header(database: sqlite3.Connection, folder: Path) -> Header:
    """Return the header of the index in a folder.

    Raises:
        CorruptDataError: If the header is incomplete or invalid.
    """
    values = dict(database.execute("SELECT key, value FROM header"))
    try:
        model, fingerprint, width = str(values["model"]), str(values["fingerprint"]), int(values["embed_dim"])
        if not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"invalid embedding width {width}")
    except PARSE_ERRORS as error:
        raise CorruptDataError(
            f"{folder / FILE}: corrupt: its header is invalid ({error}); {how_to_restore(folder)}"
        ) from error
    return Header(model, fingerprint, width)


@contextmanager
def database_errors(folder: Path) -> Iterator[None]:
    """Convert SQLite and system errors to a `UserError` that names the index."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        words = str(error)
        if "full" in words or "disk I/O" in words:
            raise UserError(
                f"{folder}: the index cannot be read or written ({words}); earlier commits are kept; check the disk "
                "and its free space, and try again"
            ) from error
        if "locked" in words or "busy" in words:
            raise UserError(
                f"{folder}: another process has locked the index; try again when that process is done"
            ) from error
        if any(sign in words for sign in _CORRUPTION_WORDS):
            raise UserError(f"{folder / FILE}: corrupt, or not an index ({words}); {how_to_restore(folder)}") from error
        if isinstance(error, sqlite3.OperationalError):
            raise UserError(
                f"{folder / FILE}: cannot be read or written ({words}); earlier commits are kept; check the "
                "permissions and the disk, and try again"
            ) from error
        raise UserError(f"{folder / FILE}: {words}") from error
    except UnicodeDecodeError as error:  # an SQLite message may quote a name from the database
        message = f"{folder / FILE}: corrupt, or not an index ({error}); {how_to_restore(folder)}"
        raise CorruptDataError(message) from error
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read or written ({error.strerror or error}); earlier commits are kept; check the "
            "permissions and the disk, and try again"
        ) from error


def sql_text(text: str) -> str | bytes:
    """Convert a text to a parameter of an SQL statement. A file name that is not UTF-8 becomes bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os_bytes(text)
    return text


def to_row(entry: Entry) -> tuple[object, ...]:
    """Convert an entry to the parameters of the statement `ADD`, except the id."""
    texts = (sql_text(text) for text in (entry.name, entry.title, entry.root, entry.file))
    return (
        *texts,
        entry.offset,
        *entry.stamp,
        entry.date,
        sql_text(entry.folder),
        entry.digest,
        entry.phash,
        entry.width,
        entry.height,
        sql_text(entry.caption),
        entry.name_hash,
        _fields_column(entry),
        *photo_columns(entry.photo, entry.title),
        entry.pixel_signature or None,
    )


def _fields_column(entry: Entry) -> str | None:
    written: dict[str, object] = dict(entry.fields)
    tags = {"tags": entry.tags} if entry.tags else {}
    if model_fields := {**confidence_fields(entry.caption_confidence), **tags}:
        written[MODEL_FIELDS] = model_fields
    return json.dumps(written) if written else None


def photo_columns(photo: Photo | None, title: str) -> tuple[str | None, str]:
    """Return the values of the columns `photo` and `keywords`.

    `photo` is the metadata as JSON, or None if it has not been read yet. `keywords` contains the title and keywords
    from users, one text per line, and then the words of the file name, if the full-text index cannot split the name
    (see `split_name`).

    Args:
        photo: Metadata of the image.
        title: Name of the image file without its suffix.
    """
    words = [*(photo.words if photo is not None else ()), split_name(title)]
    return None if photo is None else json.dumps(photo.to_dict()), "\n".join(filter(None, words))


PARSE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, OSError, RecursionError)
"""Exceptions that library code raises when it parses a corrupt value of the database."""


def from_row(row: tuple, folder: Path) -> Entry:
    """Convert a row of the statement `READ` to an entry of the index in a folder.

    Raises:
        CorruptDataError: If a value does not have the form that `to_row` writes. This is possible because SQLite
            accepts any value in any column.
    """
    try:
        _, name, root, file, offset, size, mtime_ns, digest, phash, width, height, caption, fields, photo, look = row
        texts, numbers = (name, root, file, digest, caption), (size, mtime_ns, phash, width, height)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
            raise TypeError("a column has the wrong type: text where a number is expected, or the reverse")
        if not isinstance(offset, int | None):
            raise TypeError("a text instead of an offset")
        of_model = json.loads(fields).get(MODEL_FIELDS, {}) if fields else {}
        tags = of_model.get("tags", [])
        if not all(isinstance(tag, str) for tag in tags):
            raise TypeError("a number instead of a tag")
        return Entry(
            name=name,
            root=root,
            file=file,
            offset=offset,
            stamp=Stamp(size, mtime_ns),
            digest=digest,
            phash=phash,
            width=width,
            height=height,
            caption=caption,
            fields=fields_of_row(fields),
            caption_confidence=confidence_from_fields(of_model),
            tags=tuple(tags),
            photo=Photo.from_dict(json.loads(photo)) if photo else None,
            pixel_signature=look or b"",
        )
    except PARSE_ERRORS as error:
        raise CorruptDataError(
            f"{folder / FILE}: corrupt: image {row[0]} has an invalid value ({error}); {how_to_restore(folder)}"
        ) from error


def fields_of_row(written: str | None) -> dict[str, FieldValue]:
    """Parse the database column `fields`, and return the fields that come from the user's table.

    The result is empty if there are none. A corrupt value raises one of `PARSE_ERRORS`.
    """
    return {name: value for name, value in json.loads(written).items() if name != MODEL_FIELDS} if written else {}


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a database in a folder without write permission.

    If a process of another user has opened the database for writing, the newest commits are in files next to it. If
    these files are missing, SQLite would have to create them, which it cannot do here. It can then open the database
    only with the option `immutable`, by which the caller asserts that no process changes the database.
    """
    try:
        return _connect(path, "?mode=ro")
    except sqlite3.OperationalError:
        return _connect(path, "?mode=ro&immutable=1")


def _connect(path: Path, options: str = "") -> sqlite3.Connection:
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}{options}",
        uri=True,
        timeout=_SECONDS_TO_WAIT,
        isolation_level=None,
        check_same_thread=False,
    )
    database.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
    try:
        # With this setting, completed commits survive a power failure. The statement already reads the database.
        database.execute("PRAGMA synchronous = FULL")
    except BaseException:
        database.close()
        raise
    return database


def _require_index_schema(database: sqlite3.Connection, folder: Path) -> None:
    """Check that a database is an index that this version can read, without views and unexpected triggers.

    Unexpected views and triggers might recurse forever. If a check fails, a `UserError` is raised.
    """
    (identity,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if identity != _APPLICATION_ID:
        raise UserError(
            f"{folder / FILE}: an SQLite database, but not an index of grr-coca; pass the folder of an index"
        )
    require_supported(folder, version)
    written = database.execute("SELECT type, name, sql FROM main.sqlite_master WHERE type IN ('view', 'trigger')")
    for kind, name, sql in written:
        if kind == "view" or not isinstance(sql, str) or sql not in _WORDS:
            raise CorruptDataError(
                f"{folder / FILE}: corrupt: unexpected {kind} {str(name)[:50]!r}; {how_to_restore(folder)}"
            )


def lock_writer(folder: Path) -> ProcessLock:
    """Acquire the writer lock of an index, which only one process can hold.

    Raises:
        UserError: If another process (which the message names) or this process already holds the lock, if the lock file
            is a symbolic link or cannot be written, or if the file system has no locks.
    """
    try:
        return ProcessLock(folder / _LOCK)
    except LockHeldError as error:
        if error.is_own_lock:
            raise UserError(f"{folder}: this process already writes to the index; close that Index first") from error
        raise UserError(
            f"{folder}: another process ({error.holder}) is writing to this index; wait until it is done, or stop it; "
            "searching is possible in the meantime"
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(
                f"{folder / _LOCK}: cannot be written, because it is a symbolic link; remove the link"
            ) from error
        if error.errno in _WITHOUT_LOCKS:
            raise UserError(
                f"{folder}: the file system has no locks ({error.strerror or error}), without which two writers "
                "could corrupt the index; pass a folder on another file system to --out"
            ) from error
        raise UserError(f"{folder / _LOCK}: cannot be written ({error.strerror or error})") from error
