"""Corrupt indexes: every use works or names the corrupt part, and `--check` finds every changed embedding."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from damage import is_silent, make_good, use_damaged
from library import HEADER, WIDTH, fill, make_entry, make_vectors

from grr_coca.cli import main
from grr_coca.common.errors import CorruptDataError
from grr_coca_search.embedded import checksums
from grr_coca_search.embedded.embedded_store import EmbeddedStore
from grr_coca_search.store import Changes, facets, make_store, open_store

SEEDS = 25
FOUND = [1130001136]
"""Seeds that once caused a traceback."""


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return make_good(tmp_path_factory.mktemp("good") / "index")


@pytest.fixture
def bad(good, tmp_path) -> Path:
    """A copy of it, to be corrupt."""
    return Path(shutil.copytree(good, tmp_path / "bad"))


@pytest.mark.parametrize("seed", [*range(SEEDS), *FOUND])
def test_corrupt_index_reports_one_line(good, tmp_path, seed):
    what, is_noticed = use_damaged(good, tmp_path / "bad", seed)
    assert not is_silent(what, is_noticed)


@pytest.mark.slow
def test_two_thousand_corrupt_indexes(good, tmp_path):
    for seed in range(SEEDS, 2000):
        what, is_noticed = use_damaged(good, tmp_path / "bad", seed)
        assert not is_silent(what, is_noticed), (seed, what)


@pytest.mark.parametrize("seed", range(20))
def test_checking_finds_any_change_of_the_vectors(good, tmp_path, seed):
    folder = Path(shutil.copytree(good, tmp_path / "bad"))
    made = random.Random(seed)
    path = folder / "vectors.f16"
    content = bytearray(path.read_bytes())
    content[made.randrange(len(content))] ^= 1 << made.randrange(8)
    path.write_bytes(content)
    with open_store(str(folder)) as store, pytest.raises(CorruptDataError, match="rows 1 to 60 differ"):
        store.check()


def test_update_reports_fields_that_are_not_json(bad):
    with closing(sqlite3.connect(bad / "index.sqlite")) as database, database:
        database.execute("UPDATE pictures SET fields = char(1) || 'x'")
    with open_store(str(bad)) as store, pytest.raises(CorruptDataError, match=r"the fields of .* are invalid"):
        store.known([make_entry(5).name])


def test_field_name_that_is_not_text_raises(bad):
    with closing(sqlite3.connect(bad / "index.sqlite")) as database, database:
        database.execute("INSERT INTO columns VALUES (x'ff')")
    with open_store(str(bad)) as store, pytest.raises(CorruptDataError, match="the name of a field is not a text"):
        facets(store)


def test_intact_index_passes(good, bad):
    with open_store(str(bad)) as store:
        assert store.check() == (59, 0)
        fill(store, 30, first=100)
        assert store.check() == (89, 0)


@pytest.mark.parametrize("bits", [0x7E00, 0x7C00, 0xFC00, 0x7BFF])  # NaN, infinities, a large number
def test_search_reports_an_invalid_embedding(bad, bits):
    path = bad / "vectors.f16"
    rows = np.fromfile(path, np.uint16).reshape(-1, WIDTH)
    rows[17, 3] = bits
    rows.tofile(path)
    with open_store(str(bad)) as store:
        with pytest.raises(
            CorruptDataError, match=r"vectors\.f16: corrupt: rows 1 to 60 .*rename both.*never copy into"
        ):
            store.nearest(make_vectors(1)[0], 5)
        store.commit(Changes(removed=[make_entry(17).name]))
        assert len(store.nearest(make_vectors(1)[0], 5)) == 5, "removed images are not checked"


def test_blocks_are_filled_one_after_the_other(bad, monkeypatch):
    monkeypatch.setattr(checksums, "ROWS_PER_BLOCK", 64)
    with open_store(str(bad)) as store:
        for first, count in ((100, 3), (200, 1), (300, 150), (500, 64)):
            fill(store, count, seed=first, first=first)
            assert store.check().without_checksum == 0
        with store.snapshot() as now:
            blocks = checksums.read_blocks(now.database, 0)
        assert [(block.first, block.rows) for block in blocks] == [(0, 64), (64, 64), (128, 64), (192, 64), (256, 22)]
    os.truncate(bad / "vectors.f16", 200 * WIDTH * 2)
    with pytest.raises(CorruptDataError), open_store(str(bad)) as store:
        store.check()


def test_checksums_are_rewritten_with_the_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca_search.embedded.writer.MIN_REMOVED_ROWS", 5)
    monkeypatch.setattr(checksums, "ROWS_PER_BLOCK", 16)
    monkeypatch.setattr("grr_coca_search.embedded.writer.ROWS_PER_BLOCK", 16)
    store = make_store(str(tmp_path / "index"), HEADER)
    fill(store, 700)
    store.commit(Changes(removed=[make_entry(number).name for number in range(400)]))
    assert store.compact()
    assert store.check() == (300, 0)
    fill(store, 9, first=900)
    assert store.check() == (309, 0)
    store.close()


def test_next_writer_adds_checksums_to_an_older_index(bad):
    with closing(sqlite3.connect(bad / "index.sqlite")) as database, database:
        database.execute("DROP TABLE blocks")
    with open_store(str(bad)) as store:
        assert store.check() == (59, 60)
        assert len(store.nearest(make_vectors(1)[0], 5)) == 5
    with open_store(str(bad)) as store:
        store.claim()
        assert store.check() == (59, 0)


# --- A copy that overwrites an index in use

READER = """
import os, sys
sys.path[:0] = [sys.argv[2]]
from grr_coca.common.errors import UserError
from grr_coca_search.store import open_store
from library import make_vectors
store, num_reported = open_store(sys.argv[1]), 0
query = make_vectors(1)[0]
with store.snapshot():
    print(len(store.nearest(query, 5)), flush=True)
    sys.stdin.readline()
    for use in (lambda: store.nearest(query, 5), lambda: store.vectors([15_000]), store.sample):
        try:
            use()
        except UserError as error:
            num_reported += "corrupt: it ends before row" in str(error)
print(num_reported, flush=True)
sys.stdin.readline()
again = open_store(sys.argv[1])
print(len(again.nearest(query, 5)), flush=True)
"""


@pytest.mark.ci
def test_file_that_is_cut_off_under_a_reader_ends_no_process(tmp_path):
    folder = tmp_path / "index"
    store = make_store(str(folder), HEADER)
    fill(store, 16_000)
    store.close()
    content = (folder / "vectors.f16").read_bytes()
    shared = Path(__file__).parents[1] / "shared"
    command = [sys.executable, "-c", READER, str(folder), str(shared)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "5\n"
        os.truncate(folder / "vectors.f16", 0)  # as `cp` does first
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "3\n"
        (folder / "vectors.f16").write_bytes(content)
        reader.communicate("\n", timeout=60)
    assert reader.returncode == 0


def test_backup_is_restored_as_the_message_describes(good, bad, tmp_path):
    backup = Path(shutil.copytree(good, tmp_path / "backup"))
    (bad / "vectors.f16").write_bytes(b"")
    with closing(EmbeddedStore(bad)) as store, pytest.raises(CorruptDataError, match=f"a new folder next to {bad}"):
        store.nearest(make_vectors(1)[0], 5)
    bad.rename(tmp_path / "old")
    backup.rename(bad)
    with closing(EmbeddedStore(bad)) as store:
        assert store.check() == (59, 0)


# --- The command


def test_command_checks_an_index_and_does_nothing_else(bad, capsys):
    assert main(["index", "--check", "--out", str(bad)]) == 0
    assert capsys.readouterr().out == f"{bad}: 59 images checked; no errors found\n"
    with closing(sqlite3.connect(bad / "index.sqlite")) as database, database:
        database.execute("DROP TABLE blocks")
    assert main(["index", "--check", "--out", str(bad)]) == 0
    assert "60 embeddings from an older version have no checksum" in capsys.readouterr().out
    (bad / "vectors.f16").write_bytes(bytes(60 * WIDTH * 2 - 1))
    assert main(["index", "--check", "--out", str(bad)]) == 2
    assert "corrupt" in capsys.readouterr().err
    assert main(["index", "--check", "--out", str(bad), str(bad)]) == 2
    assert "--check cannot be combined" in capsys.readouterr().err
