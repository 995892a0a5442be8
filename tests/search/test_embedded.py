"""An index in a folder has a committed state, whatever happens."""

import errno
import gc
import multiprocessing
import os
import sqlite3
import subprocess
import threading
import time
from collections import deque
from contextlib import closing
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from library import HEADER, WIDTH, ColourModel, fill, make_entry, make_vectors, paint
from support import disk_of, syncs_and_renames

from grr_coca.common.errors import CorruptDataError, UserError
from grr_coca_search.embedded.database import FAILURES_OF, IMAGES_OF
from grr_coca_search.embedded.embedded_store import MAX_WORDS, EmbeddedStore
from grr_coca_search.embedded.vectors import VectorFile, append_rows, products
from grr_coca_search.entry import VERSION, Failure
from grr_coca_search.filters import parse_filter
from grr_coca_search.store import Changes, find_store, make_store, open_store
from grr_coca_search.update import update_store

BYTES = WIDTH * 2


def folder_of(store: EmbeddedStore) -> Path:
    return Path(store.location)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list its open files")
def test_vectors_are_read_and_neither_mapped_nor_kept(tmp_path):
    """A mapped file that is cut off ends the process."""
    rows = make_vectors(3000).astype(np.float16)
    path = tmp_path / "vectors.f16"
    append_rows(path, 0, rows)
    file = VectorFile(path, 3000, WIDTH)
    np.testing.assert_allclose(products(file, np.float32(rows[:2]))[:2].diagonal(), 1, atol=1e-2)
    for numbers in ([], [7], [2999, 0, 1, 2, 1, 1, 5], range(3000)):
        assert np.array_equal(file.rows(numbers), rows[list(numbers)])
    assert "vectors.f16" not in Path("/proc/self/maps").read_text()
    with path.open("r+b") as cut:
        cut.truncate(BYTES * 2000)
    for reading in (partial(products, file, np.float32(rows[:1])), partial(file.rows, [2000])):
        with pytest.raises(CorruptDataError, match=r"vectors\.f16: corrupt: it ends before row .* rename both"):
            reading()
    assert np.array_equal(file.rows([1999]), rows[1999:2000])

    def is_open() -> bool:
        return any(os.path.realpath(one) == os.path.realpath(path) for one in Path("/proc/self/fd").iterdir())

    assert is_open()
    del file, reading
    gc.collect()
    assert not is_open(), "what is not used any more is let go"


def test_sqlite_accepts_the_longest_and_deepest_filter(store):
    longest = " and ".join(["lat < 3"] * 900)
    tree = parse_filter(f"{'not ' * 48}({longest})")
    assert list(store.matching(tree)) == list(store.nearest(make_vectors(1)[0], 1, tree)) == []


# --- Bad input


def test_closed_index_is_not_reported_as_corrupt(store):
    store.close()
    with pytest.raises(UserError, match=r"index\.sqlite: Cannot operate on a closed database"):
        len(store)


def test_missing_folder_or_folder_without_an_index_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; create an index with grr-coca index"):
        open_store(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"not an index, because it does not contain index\.sqlite"):
        open_store(str(tmp_path))
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match=r"not an index, .* --out INDEX$"):
        open_store(str(tmp_path))
    with pytest.raises(UserError, match="contains other files, not an index"):
        find_store(str(tmp_path))


def test_killed_creation_is_started_again(tmp_path):
    for name in ("writer.lock", ".index.sqlite.partial", ".index.sqlite.partial-journal"):
        (tmp_path / name).write_bytes(b"half")
    assert find_store(str(tmp_path)) is None
    store = make_store(str(tmp_path), HEADER)
    fill(store, 2)
    store.close()
    again = make_store(str(tmp_path), HEADER)
    assert len(again) == 2, "one that another process has made meanwhile is not made anew"
    assert not list(tmp_path.glob(".*"))
    again.close()


def test_rejects_other_databases_and_other_bytes(tmp_path):
    database = sqlite3.connect(tmp_path / "index.sqlite")
    database.execute("CREATE TABLE a (b)")
    database.close()
    with pytest.raises(UserError, match="an SQLite database, but not an index of grr-coca"):
        open_store(str(tmp_path))
    (tmp_path / "index.sqlite").write_bytes(b"not a database at all, but some text" * 50)
    with pytest.raises(UserError, match=r"corrupt, or not an index .* rebuild the index, or copy a backup"):
        open_store(str(tmp_path))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW slow AS WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM a) SELECT x FROM a",
        "CREATE TRIGGER slow AFTER INSERT ON header BEGIN SELECT 1; END",
    ],
)
def test_index_with_foreign_views_or_triggers_is_rejected(store, statement):
    database = sqlite3.connect(folder_of(store) / "index.sqlite")
    database.execute(statement)
    database.close()
    with pytest.raises(UserError, match=r"corrupt: unexpected (view|trigger) 'slow'; rebuild the index"):
        open_store(store.location)


def test_rejects_an_index_of_a_newer_version(store):
    database = sqlite3.connect(folder_of(store) / "index.sqlite")
    database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(UserError, match=r"written by a newer grr-coca \(format 2; this version supports 1\)"):
        open_store(store.location)


def test_second_writer_error_names_the_first(store, reopened):
    fill(store, 1)
    other = reopened()
    assert len(other) == 1
    with pytest.raises(UserError, match="this process already writes to the index"):
        other.commit(Changes(removed=["a"]))
    (folder_of(store) / "writer.lock").write_text(" 12\n")
    with pytest.raises(UserError, match=r"another process \(12\) is writing to this index"):
        other.commit(Changes(removed=["a"]))
    store.close()
    other.commit(Changes(removed=[make_entry(0).name]))
    assert len(other) == 0


@pytest.mark.filterwarnings("ignore:unclosed database")
def test_unclosed_and_forked_stores_hold_no_lock(store, reopened):
    fill(store, 1)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        store.close()
        forgotten = open_store(store.location)
        forgotten.commit(Changes(removed=["a"]))
        del forgotten
        gc.collect()
        again = reopened()
        again.commit(Changes(removed=[make_entry(0).name]))
        assert len(again) == 0
    finally:
        child.kill()
        child.join()


def test_file_system_without_locks_raises(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"the file system has no locks \(No locks available\)"):
        make_store(str(tmp_path / "index"), HEADER)


def test_truncated_vectors_raise_and_are_not_padded(store, reopened):
    fill(store, 10)
    store.close()
    path = folder_of(store) / "vectors.f16"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"vectors\.f16: corrupt: the file has only 639 of 640 committed bytes"):
        len(reopened())
    with pytest.raises(UserError, match="corrupt"):
        reopened().commit(Changes(removed=["a"]))
    assert path.stat().st_size == 639


def test_full_disk_keeps_committed_data(tmp_path):
    with disk_of(1_200_000, tmp_path / "small") as small:
        store = make_store(str(small / "index"), HEADER)
        starts = iter(range(0, 100_000, 250))
        with pytest.raises(UserError, match="earlier commits are kept"):
            deque((fill(store, 250, first=start) for start in starts), maxlen=0)
        kept = len(store)
        assert kept > 0
        assert kept % 250 == 0
        assert len(store.nearest(make_vectors(1)[0], 10)) == 10
        store.close()
        again = open_store(str(small / "index"))
        assert len(again) == kept
        again.close()


def test_update_frees_the_space_of_removed_images(store, tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca_search.embedded.writer.MIN_REMOVED_ROWS", 2)
    red, *others = [paint(tmp_path / "photos" / f"{colour}.png", colour) for colour in ("red", "green", "blue")]
    for _ in range(2):
        update_store(store, [str(red.parent)], ColourModel)
        for path in others:
            path.unlink(missing_ok=True)
    assert [path.stat().st_size for path in folder_of(store).glob("*.f16")] == [BYTES]
    assert [entry.name for entry, _ in store.everything()] == [str(red)]


def test_failed_rewrite_on_a_full_disk_frees_its_space(store, monkeypatch):
    entries, _ = fill(store, 2400)
    store.commit(Changes(removed=[entry.name for entry in entries[:1500]]))

    def full(path, _rows, _vectors):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("grr_coca_search.embedded.writer.append_rows", full)
        with pytest.raises(UserError, match="No space left"):
            store.compact()
    assert [path.name for path in folder_of(store).glob("*.f16")] == ["vectors.f16"]
    assert len(store) == 900
    assert store.compact()


# --- Interrupted writes


def test_torn_tail_is_truncated_to_committed_data(store, reopened):
    _, vectors = fill(store, 10)
    store.close()
    path = folder_of(store) / "vectors.f16"
    with path.open("ab") as file:
        file.write(b"\xff" * (3 * BYTES + 7))
    again = reopened()
    assert again.nearest(vectors[4], 1)[0].id == 5
    assert len(again) == 10
    again.claim()
    assert path.stat().st_size == 10 * BYTES
    fill(again, 5, first=10)
    assert path.stat().st_size == 15 * BYTES


def test_reader_without_permission_sees_the_latest_commit(store, reopened, monkeypatch):
    fill(store, 3)
    monkeypatch.setattr(os, "access", lambda *_: False)
    again = reopened()
    assert len(again) == 3
    fill(store, 2, first=3)
    assert len(again) == 5


def test_index_on_a_disk_that_cannot_be_written_to_is_read(tmp_path):
    with disk_of(2_000_000, tmp_path / "disk") as disk:
        store = make_store(str(disk / "index"), HEADER)
        fill(store, 3)
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        again = open_store(store.location)
        assert len(again) == 3
        again.close()


def test_vectors_are_on_the_disk_before_the_database_names_them(store, reopened, monkeypatch):
    done = syncs_and_renames(monkeypatch)
    fill(store, 3)
    assert ("sync", str(folder_of(store) / "vectors.f16")) in done
    for one in (store, reopened()):
        with one.snapshot() as now:
            assert now.database.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: a commit waits for the disk"


def test_vectors_are_rewritten_when_most_are_removed(store, reopened):
    entries, vectors = fill(store, 2400)
    reader = reopened()
    assert len(reader) == 2400
    store.commit(Changes(removed=[entry.name for entry in entries[:1500]]))
    with reader.snapshot():
        held = [match.id for match in reader.nearest(vectors[2000], 3)]
        assert store.compact()
        # The reader's state is that before, whole.
        assert held == [match.id for match in reader.nearest(vectors[2000], 3)]
        assert reader.entries(held)[0].name == entries[2000].name
    folder = folder_of(store)
    assert [path.name for path in folder.glob("*.f16")] == ["vectors-1.f16"]
    for one in (store, reader):
        assert len(one) == 900
        (best, *_) = one.nearest(vectors[2000], 3)
        assert one.entries([best.id])[0] == entries[2000]
        assert one.entries([one.word_matches(entries[2000].caption, 900)[0].id])[0].caption == entries[2000].caption
    assert not store.compact()
    fill(store, 10, first=5000)
    assert len(reader) == 910


def test_vectors_are_kept_up_to_half_removed_images(store, monkeypatch):
    monkeypatch.setattr("grr_coca_search.embedded.writer.MIN_REMOVED_ROWS", 1)
    entries, _ = fill(store, 10)
    for number, is_written in ((5, False), (6, True)):
        store.commit(Changes(removed=[entry.name for entry in entries[:number]]))
        assert store.compact() is is_written


def test_reader_follows_a_restored_database(store, reopened):
    entries, _ = fill(store, 10)
    reader = reopened()
    path = folder_of(store) / "index.sqlite"
    with closing(sqlite3.connect(path)) as database, closing(sqlite3.connect(":memory:")) as earlier:
        database.backup(earlier)
        store.commit(Changes(removed=[entry.name for entry in entries[:4]]))
        store.commit(Changes(removed=[entry.name for entry in entries[4:6]]))
        assert len(reader) == 4
        store.close()
        earlier.backup(database)
    assert len(reader) == 10
    assert {match.id for match in reader.nearest(make_vectors(1)[0], 10)} == set(range(1, 11))


@pytest.mark.parametrize("statement", [IMAGES_OF, FAILURES_OF])
def test_page_of_names_is_read_without_sorting_all_names(store, statement):
    with closing(sqlite3.connect(folder_of(store) / "index.sqlite")) as database:
        plan = database.execute(f"EXPLAIN QUERY PLAN {statement}", ("/pictures", 0, 10)).fetchall()
    assert not any("TEMP B-TREE" in text for *_, text in plan)


def test_names_are_read_in_pages_while_they_are_removed(store, monkeypatch):
    monkeypatch.setattr("grr_coca_search.embedded.embedded_store.ROWS_PER_READ", 3)
    entries, _ = fill(store, 10)
    failed = [Failure(os.fsdecode(b"/pictures/\xe9%d.png" % n), "/pictures", None, "gone") for n in range(7)]
    store.commit(Changes(failed=failed))
    found = []
    for name, _ in store.locations("/pictures"):
        found.append(name)
        store.commit(Changes(removed=[name]))
    assert sorted(found) == sorted([entry.name for entry in entries] + [failure.name for failure in failed])


# --- Words


def test_words_with_query_syntax_are_found_as_text(store):
    titles = ["arrow-left", "house", "Café_au_lait", "near"]
    captions = ["a left pointing arrow", "two houses", "a cup", "a tree"]
    entries = [
        make_entry(n, name=f"/a/{title}.png", file=f"/a/{title}.png", caption=caption)
        for n, (title, caption) in enumerate(zip(titles, captions, strict=True))
    ]
    store.commit(Changes(added=list(zip(entries, make_vectors(4), strict=True))))

    def titles_of(text):
        return [entry.title for entry in store.entries([match.id for match in store.word_matches(text, 9)])]

    assert titles_of("arrow") == ["arrow-left"]
    assert titles_of("HOUSE") == ["house"]
    assert titles_of("cafe") == ["Café_au_lait"]
    assert titles_of('NEAR("tree" OR *') == ["near"]
    assert titles_of("?!") == titles_of("zebra") == []
    store.commit(Changes(removed=[entries[1].name]))
    assert titles_of("house") == []


def test_searches_the_first_words_of_a_long_text(store):
    """SQLite compares every image that has a word of the text with all of its words, and other searches wait."""
    entry = make_entry(0, caption="a heart")
    store.commit(Changes(added=[(entry, make_vectors(1)[0])]))
    page = " ".join(f"word{n}" for n in range(MAX_WORDS))
    assert store.word_matches(f"heart {page}", 9)
    assert store.word_matches(f"{page} heart", 9) == []


# --- Kills, and readers beside a writer


def write_forever(location: str, begun: Event | None = None) -> None:
    """Add, replace and remove, each commit a state that can be told by its captions."""
    store = open_store(location)
    number = 0
    while True:
        number += 1
        vectors = make_vectors(20, seed=number)
        added = [make_entry(n, caption=f"state {number}") for n in range(20)]
        store.commit(Changes(added=list(zip(added, vectors, strict=True)), removed=[]))
        if begun is not None:
            begun.set()
        if number % 60 == 0:
            store.compact()


def require_committed(store) -> int:
    """The number of the state that a reader sees: all of it is of one commit."""
    with store.snapshot():
        matches = store.nearest(make_vectors(1, seed=9)[0], 50)
        entries = store.entries([match.id for match in matches])
        states = {entry.caption for entry in entries}
        assert len(store) == len(matches) in (0, 20), len(matches)
        assert len({entry.name for entry in entries}) == len(entries)
        assert len(states) <= 1, states
        number = int(states.pop().split()[1]) if states else 0
        if number:
            vectors = make_vectors(20, seed=number)
            kept = store.vectors([match.id for match in matches])
            rows = [int(entry.title) for entry in entries]
            assert np.array_equal(kept, vectors[rows])
    return number


@pytest.mark.ci
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_writer_leaves_a_committed_state(store, reopened, kills):
    store.close()
    context = multiprocessing.get_context("fork")
    random = np.random.default_rng(0)
    before = 0
    for _ in range(kills):
        begun = context.Event()
        writer = context.Process(target=write_forever, args=(store.location, begun))
        writer.start()
        assert begun.wait(60)
        time.sleep(0.3 * random.random())
        writer.kill()
        writer.join()
        reader = reopened()
        number = require_committed(reader)
        reader.claim()
        assert (folder_of(store) / "vectors.f16").exists() or list(folder_of(store).glob("vectors-*.f16"))
        before = max(before, number)
        reader.close()
    assert before > 0


def read_until(location: str, seconds: float, errors: list) -> None:
    store = open_store(location)
    ends, last, seen = time.monotonic() + seconds, 0, 0
    try:
        while time.monotonic() < ends or seen <= 3:
            number = require_committed(store)
            assert number >= last, "a reader never goes back"
            seen += number > last
            last = number
    except BaseException as error:
        errors.append(repr(error))
        raise


@pytest.mark.ci
@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_readers_see_only_committed_states(store, seconds):
    store.close()
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        errors = manager.list()
        writer = context.Process(target=write_forever, args=(store.location,))
        readers = [context.Process(target=read_until, args=(store.location, seconds, errors)) for _ in range(2)]
        for process in (writer, *readers):
            process.start()
        for reader in readers:
            reader.join(seconds + 60)
        assert writer.is_alive()
        writer.kill()
        writer.join()
        assert list(errors) == []
        assert [reader.exitcode for reader in readers] == [0, 0]


@pytest.mark.parametrize("name", ["writer.lock", "vectors.f16"])
def test_targets_of_links_in_an_index_are_not_changed(store, tmp_path, name):
    store.close()
    (tmp_path / "precious").write_text("words")
    (folder_of(store) / name).unlink(missing_ok=True)
    (folder_of(store) / name).symlink_to(tmp_path / "precious")
    with pytest.raises((UserError, OSError)), open_store(store.location) as again:
        fill(again, 1)
    assert (tmp_path / "precious").read_text() == "words"


def test_non_numeric_state_does_not_select_another_file(store, tmp_path):
    fill(store, 1)
    store.close()
    with closing(sqlite3.connect(folder_of(store) / "index.sqlite", isolation_level=None)) as database:
        database.execute("UPDATE state SET rows = 0, generation = 'x/../../precious'")
    (folder_of(store) / "vectors-x").mkdir()
    (tmp_path / "precious.f16").write_text("words")
    with (
        pytest.raises(UserError, match="index: corrupt: invalid state"),
        open_store(store.location) as again,
    ):
        fill(again, 1)
    assert (tmp_path / "precious.f16").read_text() == "words"


# --- Threads


def test_threads_read_their_own_state_without_waiting(store):
    fill(store, 20)
    has_begun, may_end, seen = threading.Event(), threading.Event(), []

    def read_slowly() -> None:
        with store.snapshot():
            seen.append(len(store))
            has_begun.set()
            assert may_end.wait(60)
            seen.append((len(store), len(list(store.everything())), len(store.nearest(make_vectors(1)[0], 99))))

    thread = threading.Thread(target=read_slowly)
    thread.start()
    try:
        assert has_begun.wait(60)
        fill(store, 30, first=100, seed=1)  # of another thread, and it is not waited for
        assert len(store) == len(store.nearest(make_vectors(1)[0], 99)) == 50
    finally:
        may_end.set()
        thread.join(60)
    assert seen == [20, (20, 20, 20)]


def test_unfinished_iterator_blocks_nothing(store):
    fill(store, 20)
    entries = store.everything()
    assert next(entries)
    fill(store, 5, first=100, seed=1)
    with store.snapshot():
        assert len(store) == 25
        entries.close()
        assert len(store.nearest(make_vectors(1)[0], 99)) == 25
    assert len(list(store.everything())) == 25


def test_connection_is_closed_after_the_last_read(store):
    fill(store, 20)
    with store.snapshot() as now:
        store.close()
        assert len(list(store.everything())) == 20
    with pytest.raises(sqlite3.ProgrammingError):
        now.database.execute("SELECT 1")
