"""An index of a Parquet table with the bytes of its images."""

import json

import pyarrow
import pyarrow.parquet
from support import real_pairs


def test_index_finds_rows_of_a_table_with_images(grr_coca, tmp_path):
    pairs, table = real_pairs(6), tmp_path / "train.parquet"
    images = [{"bytes": pair.image, "path": None} for pair in pairs]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "text": [pair.caption for pair in pairs]}), table)
    assert grr_coca("index", table, "-c", "pictograms", "--out", tmp_path / "index").code == 0
    hits = json.loads(grr_coca("search", tmp_path / "index", pairs[3].caption, "--json").out)
    assert f"{table}: row 4" in [hit["path"] for hit in hits[:2]]
