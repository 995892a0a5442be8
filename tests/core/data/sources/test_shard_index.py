"""The index of a shard: built once, reused, rebuilt where it is stale or damaged, and never trusted blindly."""

import errno
import gc
import io
import itertools
import json
import os
import pickle
import sys
import tarfile
import threading
from pathlib import Path
from resource import RLIM_INFINITY

import numpy as np
import pytest
from support import real_pairs, shard_members, write_shard, write_tar

from grr_coca.common.errors import UserError
from grr_coca.data import order
from grr_coca.data.dataset import PairDataset
from grr_coca.data.image_files import iterate_images
from grr_coca.data.order import SampleRef
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources import shards
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.sources.shards import TarShards
from grr_coca.data.sources.tar import ROW_DTYPE, ShardIndex, scan_shard
from grr_coca.data.tokenizer import clip_bpe

PAIRS = real_pairs(12)


@pytest.fixture(autouse=True)
def every_shard_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "MIN_SHARD_SIZE", 0)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def scans(monkeypatch):
    """The shards whose headers were read."""
    scanned = []

    def watched(path):
        scanned.append(path.name)
        return scan_shard(path)

    monkeypatch.setattr(shards, "scan_shard", watched)
    return scanned


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "set" / "a.tar", PAIRS)


def num_descriptors():
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def pairs_of(path):
    source = TarShards([path])
    return [(source[i].key, source[i].image, source[i].caption) for i in range(len(source))]


EXPECTED = [(pair.key, pair.image, pair.caption) for pair in PAIRS]


def test_index_is_built_once_and_gives_the_same_pairs(shard, scans):
    assert pairs_of(shard) == pairs_of(shard) == EXPECTED
    assert scans == ["a.tar"]
    assert sorted(path.name for path in shard.parent.iterdir()) == ["a.tar", "a.tar.index"]


def test_small_shard_gets_no_file_next_to_it(shard, scans, monkeypatch):
    monkeypatch.setattr(shards, "MIN_SHARD_SIZE", 2**24)
    assert pairs_of(shard) == EXPECTED
    assert [path.name for path in shard.parent.iterdir()] == ["a.tar"]


def test_changed_shard_is_indexed_again(shard, scans):
    pairs_of(shard)
    write_shard(shard, PAIRS[::-1])
    assert pairs_of(shard) == EXPECTED[::-1]
    os.utime(shard, ns=(1, 1))
    assert pairs_of(shard) == EXPECTED[::-1]
    assert scans == ["a.tar"] * 3


def test_corrupt_index_is_rebuilt(shard, scans):
    pairs_of(shard)
    index = shard.with_name("a.tar.index")
    good = index.read_bytes()
    rng = np.random.default_rng(0)
    state = len(json.loads(good[: shards._HEADER_SIZE].decode()).__repr__())
    places = [*rng.integers(0, state, 20), *rng.integers(shards._HEADER_SIZE, len(good), 20)]
    for number, place in enumerate(places):
        damaged = bytearray(good)
        damaged[place] ^= 1 << rng.integers(8)
        index.write_bytes(damaged)
        assert pairs_of(shard) == EXPECTED, place
        assert len(scans) <= number + 2
    for field, other in ((b'"pairs": 12', b'"pairs": 11'), (b'"is_whole": true', b'"is_whole": 0   ')):
        index.write_bytes(good.replace(field, other))
        assert len(good.replace(field, other)) == len(good)
        assert pairs_of(shard) == EXPECTED
        assert index.read_bytes() == good
    for size in (0, 1, 511, 512, 600, len(good) - 1):
        index.write_bytes(good[:size])
        assert pairs_of(shard) == EXPECTED
    index.write_bytes(good + b"more")
    assert pairs_of(shard) == EXPECTED
    assert index.read_bytes() == good


def test_index_with_an_unknown_reason_is_rebuilt(shard, scans):
    found = scan_shard(shard)
    rows = found.rows.copy()
    rows["cause"][3] = 200
    place = shard.with_name("a.tar.index")
    shards.write_index(ShardIndex(rows, found.keys, found.is_whole), place, shard)
    assert pairs_of(shard) == EXPECTED
    assert scans == ["a.tar"]


def test_shard_replaced_during_a_run_gives_bad_samples(shard, monkeypatch):
    source = pickle.loads(pickle.dumps(TarShards([shard])))  # as a worker gets it, which opens the index itself
    write_shard(shard, PAIRS[:5])
    with pytest.raises(BadSample, match=r"a\.tar: has changed since it was opened; start again") as caught:
        source[0]
    assert caught.value.cause is Cause.UNREADABLE


def test_no_index_of_a_shard_that_changes_while_read(shard, monkeypatch):
    def slow(path):
        index = scan_shard(path)
        os.utime(path, ns=(5, 5))
        return index

    monkeypatch.setattr(shards, "scan_shard", slow)
    assert pairs_of(shard) == EXPECTED
    assert [path.name for path in shard.parent.iterdir()] == ["a.tar"]


def test_index_of_another_version_is_rebuilt(shard, scans, monkeypatch):
    pairs_of(shard)
    monkeypatch.setattr(shards, "_VERSION", shards._VERSION + 1)
    assert pairs_of(shard) == EXPECTED
    assert len(scans) == 2


def test_index_of_a_read_only_folder_is_cached(shard, scans, tmp_path, monkeypatch):
    write = shards.write_bytes_atomic

    def refusing(path, content):
        if path.parent == shard.parent:
            raise PermissionError(13, "Permission denied")
        write(path, content)

    monkeypatch.setattr(shards, "write_bytes_atomic", refusing)
    assert pairs_of(shard) == pairs_of(shard) == EXPECTED
    assert scans == ["a.tar"]
    assert [path.name for path in shard.parent.iterdir()] == ["a.tar"]
    assert len(list((tmp_path / ".cache" / "grr-coca").iterdir())) == 1


def test_index_stays_in_memory_if_no_folder_is_writable(shard, monkeypatch):
    def refusing(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_bytes_atomic", refusing)
    assert pairs_of(shard) == EXPECTED


def test_concurrent_index_builds_succeed(shard):
    results = []
    threads = [threading.Thread(target=lambda: results.append(pairs_of(shard))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [EXPECTED] * 8
    assert sorted(path.name for path in shard.parent.iterdir()) == ["a.tar", "a.tar.index"]


@pytest.mark.ci
def test_open_shards_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_MAX_OPEN", 3)
    paths = [write_shard(tmp_path / "set" / f"{i:02d}.tar", [pair]) for i, pair in enumerate(PAIRS)]
    before = num_descriptors()
    source = TarShards(paths)
    for _ in range(2):
        assert [source[i].image for i in range(12)] == [pair.image for pair in PAIRS]
    assert num_descriptors() - before <= 2 * 3
    del source
    assert num_descriptors() == before


@pytest.mark.parametrize(
    ("before", "allowed", "after"),
    [
        ((1024, 4096), 4096, (4096, 4096)),
        ((256, RLIM_INFINITY), 8192, (8192, RLIM_INFINITY)),
        ((1024, 2**20), 8192, (8192, 2**20)),
        ((1024, 1024), 1024, (1024, 1024)),
        ((2**16, 2**20), 2**16, (2**16, 2**20)),
        ((RLIM_INFINITY, RLIM_INFINITY), 8192, (RLIM_INFINITY, RLIM_INFINITY)),
    ],
)
def test_open_file_limit_is_raised_to_system_limit(monkeypatch, before, allowed, after):
    limits = [before]
    monkeypatch.setattr("resource.getrlimit", lambda _: limits[-1])
    monkeypatch.setattr("resource.setrlimit", lambda _, limit: limits.append(limit))
    assert shards.raise_open_file_limit() == allowed
    assert limits[-1] == after


@pytest.mark.ci
def test_source_opens_at_most_a_quarter_of_file_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (24, 24))
    paths = [write_shard(tmp_path / "set" / f"{i:02d}.tar", [pair]) for i, pair in enumerate(PAIRS)]
    before = num_descriptors()
    source = TarShards(paths)
    assert [source[i].image for i in range(12)] == [pair.image for pair in PAIRS]
    assert num_descriptors() - before <= 24 / 4


def test_shrunken_shard_yields_bad_samples(shard):
    source = TarShards([shard])
    source[0]
    with shard.open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(BadSample, match="is shorter than before") as caught:
        source[11]
    assert caught.value.cause is Cause.UNREADABLE


def test_pair_takes_29_bytes_and_its_key(shard):
    pairs_of(shard)
    size = shard.with_name("a.tar.index").stat().st_size
    assert size == shards._HEADER_SIZE + 12 * ROW_DTYPE.itemsize + sum(len(pair.key) for pair in PAIRS)


def test_scan_keeps_no_member_list(shard, monkeypatch):
    opened = []

    def watched(*arguments):
        opened.append(open_tar(*arguments))
        return opened[-1]

    open_tar = tarfile.open
    monkeypatch.setattr(tarfile, "open", watched)
    assert len(scan_shard(shard)) == len(PAIRS)
    (tar,) = opened
    assert len(tar.members) <= 1


def test_index_stores_the_errors_of_a_shard(tmp_path, scans):
    members = shard_members(PAIRS[:6])
    keys = [pair.key for pair in PAIRS[:6]]
    del members[f"{keys[1]}.txt"], members[f"{keys[2]}.webp"]
    members[f"{keys[3]}.png"] = PAIRS[7].image  # a second image under the key
    members[f"{keys[4]}.webp"] = b""
    path = write_tar(tmp_path / "set" / "a.tar", members)
    for _ in range(2):
        source = TarShards([path])
        causes = []
        for i in range(len(source)):
            try:
                source[i]
                causes.append(None)
            except BadSample as error:
                causes.append(error.cause)
        expected = [None, Cause.NO_CAPTION, Cause.NO_IMAGE, None, Cause.DUPLICATE_KEY, Cause.EMPTY_FILE, None]
        assert causes == expected
        assert source[3].image == PAIRS[3].image
    assert scans == ["a.tar"]


def test_blocks_of_large_source_are_read_ahead(shard, monkeypatch):
    advised = []
    monkeypatch.setattr(order, "BLOCK", 4)
    monkeypatch.setattr(shards, "PLAIN_SHUFFLE", 5)
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: advised.append(arguments[1:3]))
    dataset = PairDataset(TarShards([shard]), clip_bpe(), Preprocess(16), 16)
    for index in (5, 4, 7, 6, 0):
        dataset[SampleRef(0, index)]
    rows = scan_shard(shard).rows
    starts, sizes = rows["image_block"].astype(int) * 512, rows["image_size"].astype(int)
    assert advised == [(starts[4], starts[7] + sizes[7] - starts[4]), (0 + starts[0], starts[3] + sizes[3] - starts[0])]


@pytest.mark.parametrize("is_there", [True, False], ids=["on this file system", "on this system"])
def test_pairs_are_read_without_read_ahead(shard, monkeypatch, is_there):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(shards, "PLAIN_SHUFFLE", 5)
    if is_there:
        monkeypatch.setattr(os, "posix_fadvise", refuse)
    else:
        monkeypatch.delattr(os, "posix_fadvise")
    assert pairs_of(shard) == EXPECTED


def test_deleted_shard_yields_bad_samples(shard, monkeypatch):
    monkeypatch.setattr(shards, "PLAIN_SHUFFLE", 5)
    source = TarShards([shard])
    source.name(0)  # its index is open, and the shard is not
    shard.unlink()
    with pytest.raises(BadSample, match=r"a\.tar: .*: cannot be read \(No such file"):
        source[0]


def test_target_of_a_link_next_to_a_shard_is_kept(tmp_path):
    shard, precious = write_shard(tmp_path / "a.tar", PAIRS), tmp_path / "precious"
    precious.write_text("words")
    (tmp_path / "a.tar.index").symlink_to(precious)
    assert len(TarShards([shard])) == len(PAIRS)
    assert precious.read_text() == "words"


_READS = pytest.mark.skipif(sys.version_info >= (3, 14), reason="tarfile takes the size of the plain header then")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"size": "-1536"}, marks=_READS),
        pytest.param({"size": "-5"}, marks=_READS),
        {"GNU.sparse.map": "foo"},
        {"GNU.sparse.size": "x"},
    ],
)
def test_invalid_header_raises(tmp_path, headers):
    path, image = tmp_path / "a.tar", PAIRS[0].image
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(image), headers if name == "b.png" else {}
            tar.addfile(info, io.BytesIO(image))
    with pytest.raises(UserError, match=r"a\.tar: not a readable, uncompressed tar file"):
        scan_shard(path)
    *_, last = itertools.islice(iterate_images(str(path)), 10)
    with pytest.raises(UserError, match=r"a\.tar: not a complete uncompressed tar file"):
        last.read()
