"""Export of an index to a Parquet file, and import from it."""

import json
import os
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from library import exported, fill, make_entry, make_vectors

from grr_coca.common.errors import UserError
from grr_coca_search.entry import Failure, Stamp
from grr_coca_search.index import Index
from grr_coca_search.portable import import_parquet
from grr_coca_search.store import Changes, find_store, open_store


def test_all_values_survive_a_round_trip(store, tmp_path):
    fill(store, 30)
    odd = os.fsdecode(b"/pictures/caf\xe9.png")
    store.commit(
        Changes(
            added=[(make_entry(99, name=odd, file=odd, offset=512), make_vectors(1)[0])],
            failed=[Failure("/a", "/b", Stamp(1, 2), "broken"), Failure("/c", "/b", None, "gone")],
        )
    )
    store.exclude(["raw/", "*.gif"])
    path = exported(store, tmp_path / "a.parquet")
    assert import_parquet(path, str(tmp_path / "other")) == 31
    again = open_store(str(tmp_path / "other"))
    assert again.header == store.header
    assert again.failures() == store.failures()
    assert again.columns() == store.columns()
    assert again.excluded() == ("raw/", "*.gif")

    def by_name(one):
        return sorted(one.everything(), key=lambda pair: os.fsencode(pair[0].name))

    ours, theirs = by_name(store), by_name(again)
    assert [entry for entry, _ in ours] == [entry for entry, _ in theirs]
    assert np.array_equal(np.stack([v for _, v in ours]), np.stack([v for _, v in theirs]))
    again.close()


def test_full_disk_names_the_file_and_not_the_index(store, tmp_path):
    resource = pytest.importorskip("resource")
    fill(store, 200)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a\.parquet: cannot be written \(File too large\)"):
            exported(store, tmp_path / "a.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("*.par*"))


def test_rejects_a_file_that_is_not_an_export(store, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="not an index; pass a file from `grr-coca export index`"):
        import_parquet(tmp_path / "other.parquet", str(tmp_path / "new"))
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        import_parquet(tmp_path / "text.parquet", str(tmp_path / "new"))
    fill(store, 1)
    path = exported(store, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="already has an index"):
        import_parquet(path, store.location)
    assert not (tmp_path / "new").exists()


def test_corrupt_file_raises_and_leaves_no_index(store, tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca_search.portable._ROWS_PER_READ", 100)
    fill(store, 300)
    whole = exported(store, tmp_path / "a.parquet")
    content = bytearray(whole.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 500] = bytes(500)
    (tmp_path / "torn.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"torn\.parquet: corrupt"):
        import_parquet(tmp_path / "torn.parquet", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert import_parquet(whole, str(tmp_path / "new")) == 300


def test_import_that_cannot_be_written_leaves_no_index(store, tmp_path, monkeypatch):
    fill(store, 3)
    path = exported(store, tmp_path / "a.parquet")
    (tmp_path / "new").mkdir()

    def full(_path, _rows, vectors):
        if len(vectors):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("grr_coca_search.embedded.writer.append_rows", full)
    with pytest.raises(UserError, match="No space left"):
        import_parquet(path, str(tmp_path / "new"))
    assert find_store(str(tmp_path / "new")) is None


def header_with(old, new):
    def edit(table):
        metadata = {key: value.replace(old, new) for key, value in table.schema.metadata.items()}
        assert metadata != table.schema.metadata
        return table.replace_schema_metadata(metadata)

    return edit


def column_with(column, value):
    """One cell, or one number of an embedding, is another."""

    def edit(table):
        place = table.column_names.index(column)
        if column != "embedding":
            odd = table.set_column(place, column, pyarrow.array([value]))
            return odd.replace_schema_metadata(table.schema.metadata)
        rows = np.array(table["embedding"].to_pylist(), np.float16)
        rows[-1, 7] = value
        embedding = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
        return table.set_column(place, table.schema.field(place), embedding)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (header_with(b'"version": 1', b'"version": 2'), "written by a newer grr-coca"),
        (header_with(b'"embed_dim": 32', b'"embed_dim": -1'), ""),
        (header_with(b'"embed_dim": 32', b'"embed_dim": "x"'), ""),
        (header_with(b'"version": 1', b'"version": "x"'), ""),
        (header_with(b'{"header"', b'[{"header"'), ""),
        (header_with(b'"failures": [', b'"failures": [3, '), ""),
        (column_with("phash", "abc"), "corrupt"),
        (column_with("width", 2.5), "corrupt"),
        (column_with("name", None), "corrupt"),
        (column_with("fields", "[1, 2]"), "corrupt"),
        *((column_with("embedding", wrong), "does not have unit length") for wrong in (np.nan, np.inf, 3.0)),
        (lambda table: table.drop(["caption"]), "corrupt"),
    ],
)
def test_invalid_content_raises_and_leaves_no_index(store, tmp_path, edit, message):
    fill(store, 1)
    path = exported(store, tmp_path / "a.parquet")
    pyarrow.parquet.write_table(edit(pyarrow.parquet.read_table(path)), path)
    with pytest.raises(UserError, match=rf"a\.parquet.*{message}"):
        import_parquet(path, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_index_from_elsewhere_is_marked_and_fetches_no_model(store, tmp_path):
    fill(store, 3)
    assert not store.was_imported()
    header = replace(store.header, model="somebody/model")
    path = exported(store, tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(path)
    written = json.loads(table.schema.metadata[b"grr_coca.index"])
    written["header"] = vars(header)
    table = table.replace_schema_metadata({b"grr_coca.index": json.dumps(written)})
    pyarrow.parquet.write_table(table, path)
    import_parquet(path, str(tmp_path / "other"))
    with pytest.raises(
        UserError, match="names the model somebody/model on the Hugging Face hub; if you trust this model, pass -c"
    ):
        Index.open(tmp_path / "other")
    with open_store(str(tmp_path / "other")) as again:
        assert again.was_imported()
