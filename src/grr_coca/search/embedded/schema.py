"""The tables of `index.sqlite`.

The id of a picture is 1 + its row in the file of vectors. A picture that is embedded anew gets a new row. The table
`gone` has the old id with the revision, by which a reader of an earlier state learns of it. `words` is the full-text
index of titles and captions.
"""

APPLICATION_ID = 0x67726369
"""Marks the file as ours: `grci`."""

SCHEMA = """
CREATE TABLE header (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL,   -- number of commits
    generation INTEGER NOT NULL, -- number of times that the file of vectors was written anew
    rows INTEGER NOT NULL,       -- of the file of vectors; what lies behind them was never committed
    live INTEGER NOT NULL        -- pictures
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
    fields TEXT
);
CREATE INDEX pictures_digest ON pictures (digest);
CREATE INDEX pictures_root ON pictures (root);
CREATE INDEX pictures_draw ON pictures (draw);
CREATE TABLE gone (id INTEGER PRIMARY KEY, revision INTEGER NOT NULL);
CREATE TABLE failures (
    name TEXT PRIMARY KEY, root TEXT NOT NULL, size INTEGER, mtime_ns INTEGER, message TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE columns (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(
    title, caption, content='pictures', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER pictures_added AFTER INSERT ON pictures BEGIN
    INSERT INTO words (rowid, title, caption) VALUES (new.id, new.title, new.caption);
END;
CREATE TRIGGER pictures_removed AFTER DELETE ON pictures BEGIN
    INSERT INTO words (words, rowid, title, caption) VALUES ('delete', old.id, old.title, old.caption);
END;
INSERT INTO state VALUES (1, 0, 0, 0, 0);
"""

ADD = """
INSERT INTO pictures (id, name, title, root, file, "offset", size, mtime_ns, date, folder, digest, phash, width, height,
    caption, draw, fields)
VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?,
    CAST(? AS TEXT), ?, ?)
"""
"""Texts are bound as bytes, because file names need not be UTF-8."""

READ = """
SELECT id, name, root, file, "offset", size, mtime_ns, digest, phash, width, height, caption, fields FROM pictures
"""

PICTURES_OF = """
SELECT name, file, "offset", id FROM pictures WHERE root = CAST(? AS TEXT) AND id > ? ORDER BY id LIMIT ?
"""
FAILURES_OF = """
SELECT name, CAST(name AS BLOB) FROM failures WHERE root = CAST(? AS TEXT) AND name > CAST(? AS TEXT)
ORDER BY name LIMIT ?
"""
"""`PICTURES_OF` and `FAILURES_OF` read a page of the names of a root, each with what the next page begins after. The
tables have indexes in this order, so nothing is sorted."""
