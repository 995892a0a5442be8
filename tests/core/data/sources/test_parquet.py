"""Parquet tables with the bytes of images in a column, as data sets of Hugging Face have them."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from stores import image_cells, write_table
from support import real_pairs

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import find_images
from grr_coca.data.sources import parquet
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import image_numbers, source_digest

PAIRS = real_pairs(12)
STRUCT = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


@pytest.fixture
def table(tmp_path):
    """A table in the layout of Hugging Face, in three row groups."""
    return write_table(tmp_path / "train.parquet", image=image_cells(PAIRS), text=[pair.caption for pair in PAIRS])


def test_pairs_are_read_in_any_order_and_in_other_processes(table):
    source = open_source(table)
    forward = [source[i] for i in range(len(source))]
    assert [(p.image, p.caption, p.key) for p in forward] == [(p.image, p.caption, p.key) for p in PAIRS]
    assert [source[i] for i in reversed(range(12))] == forward[::-1]
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(12)] == forward
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(source.__getitem__, range(12))) == forward
    assert source.name(6) == f"{table}: row 7"
    for index in (-1, 12):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    "images",
    [
        pyarrow.array([pair.image for pair in PAIRS], pyarrow.large_binary()),
        pyarrow.array([{"bytes": pair.image} for pair in PAIRS]),
        pyarrow.array([{"path": None, "bytes": pair.image, "more": 3} for pair in PAIRS]),
    ],
    ids=["bytes", "only bytes", "no path"],
)
@pytest.mark.parametrize("name", ["image", "IMG", "jpg", "my picture"])
def test_column_of_images_is_found_by_its_type(tmp_path, images, name):
    columns = {name: images, "caption": [pair.caption for pair in PAIRS]}
    source = open_source(write_table(tmp_path / "a.parquet", **columns))
    assert [(source[i].image, source[i].caption) for i in range(12)] == [(p.image, p.caption) for p in PAIRS]


def test_few_row_groups_are_in_memory(table, monkeypatch):
    """Each image is read again after others have taken its place, and the first reading is of one row group."""
    read = []
    read_group = parquet._read_group
    monkeypatch.setattr(parquet, "_MAX_CACHED_BYTES", 6 * max(len(pair.image) for pair in PAIRS))
    monkeypatch.setattr(parquet, "_read_group", lambda *args: (read.append(args[1]), read_group(*args))[1])
    parquet._GROUPS.clear()
    source = open_source(table)
    assert read == [], "opening reads captions only"
    assert [source[i].image for i in (0, 1, 4)] == [PAIRS[i].image for i in (0, 1, 4)]
    assert read == [0]
    assert source[11].image == PAIRS[11].image
    assert read == [0, 2]
    assert source[5].image == PAIRS[5].image
    assert source[0].image == PAIRS[0].image
    assert read == [0, 2, 1, 0]


def test_large_row_group_is_an_error_that_names_the_fix(table, monkeypatch):
    monkeypatch.setattr(parquet, "_MAX_GROUP", 100)
    with pytest.raises(UserError, match=r"train\.parquet: a row group has .* the table again .* row_group_size=100"):
        open_source(table)


def test_rows_without_an_image_or_a_caption_are_bad_samples(tmp_path):
    images = pyarrow.array(
        [None, {"bytes": None, "path": "a.jpg"}, {"bytes": b"", "path": None}, *image_cells(PAIRS)[:1]], STRUCT
    )
    source = open_source(write_table(tmp_path / "a.parquet", image=images, text=["a", "b", "c", None]))
    causes = []
    for index in range(4):
        with pytest.raises(BadSample, match=f"row {index + 1}: ") as caught:
            source[index]
        causes.append(caught.value.cause)
    assert causes == [Cause.NO_IMAGE] * 3 + [Cause.NO_CAPTION]
    with pytest.raises(BadSample, match=r"the file a\.jpg is not read"):
        source[1]
    assert source.image(3) == PAIRS[0].image


def test_image_with_too_many_bytes_is_a_bad_sample(table, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_BYTES", 10)
    with pytest.raises(BadSample, match=r"row 3: too many bytes: .* \(limit 10\)"):
        open_source(table)[2]


def test_deleted_table_yields_bad_samples(table):
    source = pickle.loads(pickle.dumps(open_source(table)))
    table.unlink()
    with pytest.raises(BadSample, match="row 1: cannot be read"):
        source[0]


def test_several_columns_of_bytes_need_a_common_name(tmp_path):
    two = {"mask": image_cells(PAIRS), "image": image_cells(PAIRS[::-1]), "text": ["a"] * 12}
    assert open_source(write_table(tmp_path / "a.parquet", **two))[0].image == PAIRS[-1].image
    two["other"] = two.pop("image")
    with pytest.raises(
        UserError, match=r"several columns of bytes \(mask, other\); rename the image column to 'image'"
    ):
        open_source(write_table(tmp_path / "b.parquet", **two))


def test_bytes_next_to_a_column_of_paths_are_not_images(tmp_path):
    (tmp_path / "a.webp").write_bytes(PAIRS[0].image)
    columns = {"file_name": ["a.webp"], "caption": ["a"], "hash": [b"123"]}
    assert open_source(write_table(tmp_path / "a.parquet", **columns))[0].image == PAIRS[0].image


def test_digest_depends_on_file_name_and_size(table, tmp_path):
    before = source_digest(open_source(table))
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / table.name
    moved.write_bytes(table.read_bytes())
    assert source_digest(open_source(moved)) == before
    write_table(moved, image=image_cells(PAIRS[1:]), text=["a"] * 11)
    assert source_digest(open_source(moved)) != before
    assert np.array_equal(image_numbers(open_source(table)), np.arange(12)), "each row is an image"


def test_commands_for_images_read_the_table(grr_coca, table, tmp_path):
    out = tmp_path / "captions.jsonl"
    assert [file.read() for file in find_images([str(table)])] == [pair.image for pair in PAIRS]
    assert grr_coca("caption", table, "-c", "pictograms", "--out", out).code == 0
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 12
