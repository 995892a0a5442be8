"""Parquet tables elsewhere with the bytes of images: the same pairs as on disk, each row group fetched once."""

import pickle

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fake_hub import fake_hub
from stores import FileServer, image_cells, indexed, pairs_of, s3_environment, s3_server, upload, write_table
from support import real_pairs, write_shard

from grr_coca.common import remote
from grr_coca.common.errors import UserError
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.order import Blocks, GlobalBatches, SampleRef, Shuffle, TrainingOrder
from grr_coca.data.prefetch import PrefetchOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources import parquet, shards
from grr_coca.data.sources.base import BadSample
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import clip_bpe

pytestmark = pytest.mark.usefixtures("own_cache")
PAIRS = real_pairs(24)
PATTERN = "train-{00000..00001}-of-00002.parquet"
GROUP = 5
"""Rows of a row group, as `write_table` writes them. A table has 12 rows, so three groups."""


def write_pairs(path, pairs, **options):
    return write_table(path, image=image_cells(pairs), text=[pair.caption for pair in pairs], **options)


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        name = f"train-{number:05d}-of-00002.parquet"
        write_pairs(tmp_path / "set" / name, PAIRS[12 * number : 12 * number + 12])
    return tmp_path / "set"


def outcome(source, index):
    try:
        pair = source[index]
        return pair.key, pair.image, pair.captions
    except BadSample as error:
        return error.cause, str(error).rpartition(": row ")[2].partition(":")[0]


EXPECTED = [(pair.key, pair.image, pair.captions) for pair in PAIRS]


# --- The same pairs


def test_pairs_from_a_web_server_equal_those_on_disk(source, folder):
    assert pairs_of(open_source(str(folder / PATTERN))) == EXPECTED
    assert pairs_of(source) == EXPECTED
    assert pairs_of(pickle.loads(pickle.dumps(source)))[::-1] == EXPECTED[::-1]
    assert source.name(13).endswith("/train-00001-of-00002.parquet: row 2")
    assert source.is_remote


@pytest.mark.ci
def test_pairs_from_s3_equal_those_on_disk(folder, monkeypatch):
    with s3_server() as endpoint:
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        upload(endpoint, "tables", {path.name: path.read_bytes() for path in folder.iterdir()})
        assert pairs_of(indexed("s3://tables/train-*.parquet")) == EXPECTED
        # The listing that the first opening made is no longer true.
        monkeypatch.setattr(remote, "_MIN_LISTED", 2)
        source = open_source(f"s3://tables/{PATTERN}")
        upload(endpoint, "tables", {"train-00000-of-00002.parquet": b"PAR1" * 10**5})
        for path in (folder.parent / "cache" / "grr-coca" / "blocks").glob("*.block"):
            path.unlink()
        with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet: has changed since it was indexed"):
            source[0]


@pytest.mark.ci
def test_pairs_from_the_hub_equal_those_on_disk(folder, monkeypatch):
    with fake_hub() as hub:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.address, "token": False})
        hub.repositories["me/pairs"] = []
        hub.commit("me/pairs", {f"data/{path.name}": path.read_bytes() for path in folder.iterdir()})
        for pattern in (PATTERN, "train-*.parquet"):
            assert pairs_of(indexed(f"hf://datasets/me/pairs/data/{pattern}")) == EXPECTED
        with pytest.raises(UserError, match=r"hf://datasets/me/pairs/data/a\.parquet: no such file"):
            open_source("hf://datasets/me/pairs/data/a.parquet")
        source = open_source(f"hf://datasets/me/pairs/data/{PATTERN}")
        hub.commit("me/pairs", {"data/train-00000-of-00002.parquet": b"PAR1" * 100})
        assert pairs_of(source)[12:] == EXPECTED[12:]
        with pytest.raises(UserError, match=r"00000-of-00002\.parquet: has changed since it was indexed"):
            open_source(f"hf://datasets/me/pairs/data/{PATTERN}")


@pytest.mark.parametrize(
    ("images", "compression", "name"),
    [
        ([pair.image for pair in PAIRS], "none", "image"),
        (pyarrow.array([pair.image for pair in PAIRS], pyarrow.large_binary()), "zstd", "my picture"),
        (pyarrow.array([{"path": None, "bytes": pair.image, "more": 3} for pair in PAIRS]), "none", "my picture"),
        (
            pyarrow.array([PAIRS[i % 2].image for i in range(24)]).dictionary_encode().cast(pyarrow.binary()),
            "zstd",
            "image",
        ),
    ],
    ids=["bytes", "large bytes", "no path", "repeated"],
)
def test_table_layouts_match_disk(tmp_path, images, compression, name):
    captions = [[pair.caption, f"a {pair.caption}\nof two lines"] for pair in PAIRS]
    columns = {"label": list(range(24)), name: images, "captions": captions, "mask": [b"not an image"] * 24}
    columns.pop("mask" if name == "my picture" else "label")
    path = write_table(tmp_path / "set" / "a.parquet", compression=compression, **columns)
    with FileServer(path.parent) as server:
        assert pairs_of(indexed(f"{server.url}/a.parquet")) == pairs_of(open_source(path))


def test_bad_rows_match_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_BYTES", 5000)
    images, texts = image_cells(PAIRS[:12]), [pair.caption for pair in PAIRS[:12]]
    images[0], images[1]["bytes"], images[2]["bytes"], images[3]["bytes"] = None, None, b"", b"x" * 5001
    texts[4], texts[5] = None, ""
    images[11] = None
    path = write_table(tmp_path / "set" / "a.parquet", image=images, text=texts)
    with FileServer(path.parent) as server:
        found = indexed(f"{server.url}/a.parquet")
        assert [outcome(found, i) for i in range(12)] == [outcome(open_source(path), i) for i in range(12)]
        assert sum(isinstance(outcome(found, i)[1], bytes) for i in range(12)) == 6


def test_tables_and_shards_are_one_source(server, folder):
    write_shard(folder / "a.tar", PAIRS[:3])
    assert pairs_of(indexed(f"{server.url}/{{a.tar,train-00001-of-00002.parquet}}")) == EXPECTED[:3] + EXPECTED[12:]


def test_captions_need_no_network(source, server):
    server.stop()
    assert [source.captions(i) for i in range(24)] == [pair.captions for pair in PAIRS]
    assert server.requests == []


def test_tables_that_have_no_images_raise(server, folder):
    write_table(folder / "paths.parquet", image=["a.jpg"], text=["a"])
    write_table(folder / "silent.parquet", image=image_cells(PAIRS[:1]))
    (folder / "broken.parquet").write_bytes(b"PAR1" * 100)
    for name, message in (
        ("paths", "no column of image bytes"),
        ("silent", "no column of the caption"),
        ("broken", "not a readable Parquet file"),
    ):
        with pytest.raises(UserError, match=rf"^{server.url}/{name}\.parquet: {message}"):
            indexed(f"{server.url}/{name}.parquet")


# --- Requests


@pytest.mark.parametrize("block", [3, 12])
def test_row_group_is_one_request(source, server, monkeypatch, block):
    for module in ("prefetch", "order"):
        monkeypatch.setattr(f"grr_coca.data.{module}.BLOCK", block)
    dataset = PairDataset(source, clip_bpe(), Preprocess(16), 40, augmentation=Augmentation())
    order = TrainingOrder(Shuffle(24, 0), GlobalBatches(4, 12))
    ahead = PrefetchOrder(order, Shuffle(24, 0), Blocks([24]))
    keys = [key for batch in make_loader(dataset, ahead, 0) for key in batch.keys]
    assert sorted(keys) == sorted(2 * [pair.key for pair in PAIRS])
    assert len(server.ranges) == len(set(server.ranges)) == 6  # three row groups in each table


def test_only_the_column_of_images_is_read(tmp_path):
    other = [bytes(range(256)) * 100] * 10
    path = write_table(
        tmp_path / "set" / "a.parquet", 10, "none", mask=other, image=image_cells(PAIRS[:10]), text=["a"] * 10
    )
    with FileServer(path.parent) as server:
        source = indexed(f"{server.url}/a.parquet")
        server.requests.clear()
        assert source[9].image == PAIRS[9].image
    ((_, part),) = server.ranges
    first, last = map(int, part.split("-"))
    images = sum(len(pair.image) for pair in PAIRS[:10])
    assert images < last + 1 - first < images + 1000


def test_cache_has_room_for_the_row_groups_of_a_window(source, monkeypatch):
    """All row groups that a block touches are read, so a window takes more than its pairs."""
    monkeypatch.setattr(shards, "CACHE_BYTES", 0)
    monkeypatch.setattr(shards, "_CACHED_PAIRS", 8)
    monkeypatch.setattr(shards, "BLOCK", 4)
    whole = sum(file.size for file in source.paths)
    # Two blocks of four pairs, each in up to eight rows of whole groups.
    assert source._cache_bytes() == int(whole * 16 / 24)


# --- Faults


@pytest.mark.parametrize("fault", ["503", "other"])
def test_temporary_server_failure_is_survived(tmp_path, fault):
    """`test_remote` has the other faults, which are handled below the tables."""
    path = write_pairs(tmp_path / "set" / "a.parquet", PAIRS[:12], compression="none")
    with FileServer(path.parent) as server:
        source = indexed(f"{server.url}/a.parquet")
        server.requests.clear()
        server.faults.extend([fault] if fault == "other" else [fault] * 3)
        assert source[7].image == PAIRS[7].image
        assert len(server.ranges) == (2 if fault == "other" else 4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", r"after 5 attempts \(HTTP 503\)"),
        ("other", "the content differs from the index"),
    ],
)
def test_permanent_server_failure_stops_the_run(source, server, fault, reason):
    server.always = fault
    dataset = PairDataset(source, clip_bpe(), Preprocess(16), 40, augmentation=Augmentation())
    with pytest.raises(UserError, match=rf"^{server.url}/train-00001-of-00002\.parquet: .*{reason}") as caught:
        dataset[SampleRef(0, 12)]
    assert not isinstance(caught.value, BadSample)


@pytest.mark.parametrize("group", [GROUP, 7], ids=["other images", "other groups"])
def test_changed_table_stops_the_run(source, folder, group):
    assert source[12].image == PAIRS[12].image
    write_pairs(folder / "train-00001-of-00002.parquet", PAIRS[11:23], group=group)
    assert source[16].image == PAIRS[16].image  # from this machine
    with pytest.raises(UserError, match=r"00001-of-00002\.parquet: has changed since it was indexed") as caught:
        source[17]
    assert not isinstance(caught.value, BadSample)


def test_corrupt_row_group_in_cache_is_fetched_again(source, server, own_cache):
    assert source[0].image == PAIRS[0].image
    (block,) = (own_cache / "blocks").glob("*.block")
    block.write_bytes(b"\0" * block.stat().st_size)
    assert source[1].image == PAIRS[1].image
    assert len(server.ranges) == 2
