"""Shards elsewhere: the same pairs as on disk, each block fetched once, whatever servers and networks do."""

import logging
import os
import pickle
import re
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from stores import SECRET, FileServer, free_port, indexed, pairs_of, s3_environment, s3_server, upload
from support import real_pairs, shard_members, warnings_of, write_shard, write_tar

from grr_coca.common import remote
from grr_coca.common.errors import UserError
from grr_coca.common.files import is_url
from grr_coca.common.remote import expand_braces, find_remote
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.order import Blocks, GlobalBatches, SampleRef, Shuffle, TrainingOrder
from grr_coca.data.prefetch import PrefetchOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources import shards
from grr_coca.data.sources.base import BadSample
from grr_coca.data.sources.block_cache import BlockCache, RemoteBlock
from grr_coca.data.sources.open import open_source, remote_shards
from grr_coca.data.sources.shards import index_remote
from grr_coca.data.sources.views import Chain, Subset, every_caption, source_digest
from grr_coca.data.tokenizer import clip_bpe

pytestmark = pytest.mark.usefixtures("own_cache")
PAIRS = real_pairs(24)
PATTERN = "{00..02}.tar"


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_shard(tmp_path / "set" / f"{number:02d}.tar", PAIRS[8 * number : 8 * number + 8])
    return tmp_path / "set"


@pytest.fixture(scope="module")
def s3():
    with s3_server() as endpoint:
        yield endpoint


EXPECTED = [(pair.key, pair.image, pair.captions) for pair in PAIRS]


# --- Names


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{9..10}.tar", ["9.tar", "10.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
    ],
)
def test_braces_expand_to_names(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{1..0}.tar", "{a}.tar", "{}.tar", "{00..9}.tar", "{-1..2}"])
def test_empty_braces_are_named(pattern):
    with pytest.raises(UserError, match="must be an ascending range"):
        expand_braces(pattern)


@pytest.mark.parametrize(("pattern", "count"), [("{0..1000}/{0..1000}", "1,002,001"), ("{0..9999999}", "10,000,000")])
def test_too_many_names_raise(pattern, count):
    with pytest.raises(UserError, match=f"represents {count} files"):
        expand_braces(pattern)


def test_braces_name_shards_on_disk(folder):
    assert pairs_of(open_source(str(folder / PATTERN))) == EXPECTED
    with pytest.raises(UserError, match=r"03\.tar"):
        open_source(str(folder / "{00..03}.tar"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("s3://a/b.tar", True), ("https://a/b", True), ("file:///a", False), (r"C:\a.tar", False), ("icons:a", False)],
)
def test_urls_are_distinguished_from_paths(path, expected):
    assert is_url(path) is expected


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/a.tar",
        f"https://{SECRET}@host/a.tar",
        f"s3://AKIA:{SECRET}@bucket/a.tar",
        f"https://host/a.tar?X-Amz-Signature={SECRET}",
    ],
)
def test_url_with_a_credential_raises_without_showing_it(url):
    with pytest.raises(UserError, match="omit it, and set credentials in the environment") as caught:
        open_source(url)
    assert SECRET not in str(caught.value)


# --- The same pairs


def test_pairs_from_a_web_server_equal_those_on_disk(source, folder, own_cache):
    assert pairs_of(source) == EXPECTED
    assert source.container(0).startswith("http://127.0.0.1")
    names = [path.name for path in own_cache.rglob("*") if path.is_file()]
    assert len(names) > 24
    assert all(re.fullmatch(r"[0-9a-f]{2,32}\.(index|block|lock)", name) for name in names)  # valid on Windows, too


@pytest.mark.ci
def test_pairs_from_s3_equal_those_on_disk(s3, folder, monkeypatch):
    for name, value in s3_environment(s3).items():
        monkeypatch.setenv(name, value)
    files = {f"cc/{path.name}": path.read_bytes() for path in folder.glob("*.tar")}
    upload(s3, "pairs", files)
    assert pairs_of(indexed(f"s3://pairs/cc/{PATTERN}")) == EXPECTED
    assert pairs_of(open_source("s3://pairs/cc/*.tar")) == EXPECTED
    monkeypatch.setattr(remote, "_MIN_LISTED", 2)  # from here on, the folder is listed
    assert pairs_of(open_source(f"s3://pairs/cc/{PATTERN}")) == EXPECTED
    with pytest.raises(UserError, match=r"s3://pairs/cc/03\.tar: no such file"):
        open_source("s3://pairs/cc/{00..03}.tar")
    with pytest.raises(UserError, match=r"s3://pairs/no\*\.tar: no file matches"):
        open_source("s3://pairs/no*.tar")
    upload(s3, "pairs", {"cc/01.tar": files["cc/00.tar"]})
    with pytest.raises(UserError, match=r"01\.tar: has changed since it was indexed"):
        open_source(f"s3://pairs/cc/{PATTERN}")


def test_remote_errors_and_captions_match_disk(tmp_path):
    members = shard_members(PAIRS[:6])
    keys = [pair.key for pair in PAIRS[:6]]
    del members[f"{keys[1]}.txt"], members[f"{keys[2]}.webp"]
    for key in keys:
        members[f"{key}.json"] = b'{"captions": ["one", "two"]}'
    members[f"{keys[4]}.json"] = b"broken"
    members[f"{keys[5]}.txt"] = b"x" * (2**20 + 1)
    members[f"{keys[5]}.json"] = b"{}"
    write_tar(tmp_path / "set" / "a.tar", dict(sorted(members.items())))
    with FileServer(tmp_path / "set") as server:
        found, expected = indexed(f"{server.url}/a.tar"), open_source(str(tmp_path / "set" / "a.tar"))
    assert len(found) == len(expected) == 6
    for index in range(6):
        outcomes = []
        for opened in (found, expected):
            try:
                outcomes.append(opened.captions(index))
            except BadSample as error:
                outcomes.append((error.cause, str(error).rpartition(".tar: ")[2]))
        assert outcomes[0] == outcomes[1]


def test_captions_need_no_network(source, server):
    server.stop()
    assert [source.captions(i) for i in range(24)] == [pair.captions for pair in PAIRS]
    assert len(every_caption(source)) == 24
    assert server.requests == []


def test_digest_is_of_the_content(server, folder, tmp_path):
    before = source_digest(indexed(f"{server.url}/{PATTERN}"))
    (tmp_path / "other").mkdir()
    for path in folder.iterdir():
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    with FileServer(tmp_path / "other") as second:
        assert source_digest(indexed(f"{second.url}/{PATTERN}")) == before
    write_shard(folder / "01.tar", PAIRS[9:17])
    assert source_digest(indexed(f"{server.url}/{PATTERN}")) != before


# --- The index


def test_each_shard_is_read_once(server, folder, monkeypatch):
    monkeypatch.setattr(shards, "_READ_BYTES", 4096)
    url = f"{server.url}/{PATTERN}"
    with pytest.raises(UserError, match=r"00\.tar: is not indexed yet; run `grr-coca data index`"):
        open_source(url)
    assert [index_remote(file) for file in remote_shards(url)] == [True] * 3
    for path in folder.iterdir():
        parts = sorted([int(n) for n in part.split("-")] for name, part in server.ranges if name == path.name)
        assert parts[0][0] == 0
        assert parts[-1][1] == path.stat().st_size - 1
        assert all(first[1] + 1 == second[0] for first, second in pairwise(parts))
    server.requests.clear()
    assert [index_remote(file) for file in remote_shards(url)] == [False] * 3
    assert server.ranges == []
    write_shard(folder / "01.tar", PAIRS[:4])
    with pytest.raises(UserError, match=r"01\.tar: has changed since it was indexed"):
        open_source(url)
    assert [index_remote(file) for file in remote_shards(url)] == [False, True, False]
    assert len(open_source(url)) == 20


def test_corrupt_index_raises_and_is_rebuilt(server, own_cache):
    url = f"{server.url}/00.tar"
    indexed(url)
    (index,) = (own_cache / "shards").glob("*.index")
    content = bytearray(index.read_bytes())
    content[700] ^= 1
    index.write_bytes(content)
    with pytest.raises(UserError, match=r"corrupt.*`grr-coca data index`"):
        open_source(url)[0]
    assert pairs_of(indexed(url)) == EXPECTED[:8]


def test_file_that_is_not_a_shard_raises(server, folder):
    (folder / "a.tar").write_bytes(b"no tar" * 1000)
    (folder / "table.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match=rf"{server.url}/a\.tar: not a readable, uncompressed tar file"):
        indexed(f"{server.url}/a.tar")
    with pytest.raises(UserError, match=r"table\.csv: only tar shards and Parquet can be read remotely"):
        open_source(f"{server.url}/table.csv")
    with pytest.raises(UserError, match=r"a web server does not list its files"):
        open_source(f"{server.url}/*.tar")
    with pytest.raises(UserError, match="fsspec does not support 'nonsense:'"):
        open_source("nonsense://bucket/a.tar")


def test_truncated_shard_is_used_up_to_its_end(server, folder):
    content = (folder / "00.tar").read_bytes()
    (folder / "00.tar").write_bytes(content[: len(content) // 2])
    with warnings_of("grr_coca.data.sources.shards") as messages:
        source = indexed(f"{server.url}/00.tar")
    assert "00.tar: truncated" in messages[0]
    assert [str(path) for path in source.truncated] == [f"{server.url}/00.tar"]
    assert source[0].image == PAIRS[0].image


# --- Faults


@pytest.mark.parametrize("fault", ["503", "stall", "other"])
def test_temporary_server_failure_is_survived(source, server, fault, monkeypatch):
    monkeypatch.setattr(remote, "SECONDS_TO_ANSWER", 0.1)
    server.faults.extend([fault] if fault == "other" else [fault] * 3)
    assert source[0].image == PAIRS[0].image
    assert len(server.ranges) == (2 if fault == "other" else 4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "HTTP 503"),
        ("404", "no such file"),
        ("stall", "no answer in time"),
        ("cut", "ClientPayloadError"),
        ("short", "bytes instead of"),
        ("long", "bytes instead of"),
        ("whole", "bytes instead of"),
    ],
)
def test_permanent_server_failure_stops_the_run(source, server, fault, reason, monkeypatch):
    monkeypatch.setattr(remote, "SECONDS_TO_ANSWER", 0.1)
    server.always = fault
    dataset = PairDataset(source, clip_bpe(), Preprocess(16), 40, augmentation=Augmentation())
    with pytest.raises(UserError, match=rf"{server.url}/01\.tar: .* after 5 attempts \(.*{reason}") as caught:
        dataset[SampleRef(0, 8)]
    assert not isinstance(caught.value, BadSample)


@pytest.mark.parametrize("status", ["401", "403"])
def test_denial_raises_immediately(source, server, status):
    server.always = status
    with pytest.raises(UserError, match=rf"00\.tar: access is denied \(HTTP {status}\); see docs/data.md"):
        source[0]
    assert len(server.ranges) == 1


@pytest.mark.ci
def test_one_minute_network_failure_is_survived(folder, monkeypatch):
    assert sum(remote.PAUSES) < 1, "the fixture makes tests quick"
    monkeypatch.undo()
    assert sum(remote.PAUSES) > 60
    assert sum(remote.PAUSES[:-1]) > 60, "the last pause may be cut by a little"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    monkeypatch.setattr(remote, "PAUSES", tuple(pause / 60 for pause in remote.PAUSES))
    port = free_port()
    with FileServer(folder, port) as server:
        source = indexed(f"{server.url}/{PATTERN}")
    threading.Timer(1, lambda: second.append(FileServer(folder, port))).start()
    second = []
    with warnings_of("grr_coca.common.remote") as messages:
        assert source[0].image == PAIRS[0].image
    assert re.fullmatch(r"http://.*/00\.tar: .*; trying again in [\d.]+ s", messages[0])
    second[0].stop()


@pytest.mark.parametrize("head", ["503", "404"])
def test_file_state_is_retried_unless_missing(server, head):
    server.heads.extend([head] * 2)
    if head == "404":
        server.always = "404"  # the client asks by GET, then
        with pytest.raises(UserError, match=r"00\.tar: no such file"):
            find_remote(f"{server.url}/00.tar")
        assert len(server.requests) <= 2
    else:
        server.faults.extend(["503"])
        assert find_remote(f"{server.url}/00.tar")[0].size > 0


def test_changed_shard_stops_the_run(source, folder):
    assert source[8].image == PAIRS[8].image
    write_shard(folder / "01.tar", PAIRS[9:17])
    assert source[8].image == PAIRS[8].image  # from this machine
    with pytest.raises(UserError, match=r"01\.tar: has changed since it was indexed") as caught:
        source[9]
    assert not isinstance(caught.value, BadSample)


def test_permanently_different_bytes_raise(source, server):
    server.always = "other"
    with pytest.raises(UserError, match=r"00\.tar: \S+: the content differs from the index"):
        source[0]


def test_messages_hide_redirect_targets(source, server, caplog):
    server.always = "503"
    with caplog.at_level(logging.DEBUG, "grr_coca"), pytest.raises(UserError) as caught:
        source[0]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# --- Blocks


def blocks_of(monkeypatch, size):
    for module in ("prefetch", "order"):
        monkeypatch.setattr(f"grr_coca.data.{module}.BLOCK", size)


def epochs(source, num_workers, batch_size=4, num_epochs=2):
    size = len(source)
    dataset = PairDataset(source, clip_bpe(), Preprocess(16), 40, augmentation=Augmentation())
    batches = GlobalBatches(batch_size, num_epochs * size // batch_size)
    order = TrainingOrder(Shuffle(size, 0), batches)
    ahead = PrefetchOrder(order, Shuffle(size, 0), Blocks([size]))
    return [key for batch in make_loader(dataset, ahead, num_workers) for key in batch.keys]


def test_block_takes_one_request_per_shard(source, server, monkeypatch):
    blocks_of(monkeypatch, 6)
    keys = epochs(source, num_workers=2)
    assert sorted(keys) == sorted(2 * [pair.key for pair in PAIRS])
    # Blocks 0 … 5, 6 … 11, 12 … 17, 18 … 23 in shards of 8.
    assert sorted(name for name, _ in server.ranges) == ["00.tar"] * 2 + ["01.tar"] * 2 + ["02.tar"] * 2
    assert len(set(server.ranges)) == 6


def test_subset_has_aligned_blocks(source, server, monkeypatch):
    blocks_of(monkeypatch, 4)
    kept = [index for index in range(24) if index % 3]
    epochs(Chain([Subset(source, kept)]), 0)
    assert len(server.ranges) == len(set(server.ranges)) == 6  # 16 pairs in 4 blocks, two of which are in two shards


def test_sparse_pairs_are_read_separately(source, server, monkeypatch):
    monkeypatch.setattr(shards, "_DENSE", 2)
    few = Subset(source, [0, 5, 10, 15, 20])
    few.expect(range(5))
    for index in range(5):
        assert few[index].image == PAIRS[5 * index].image
    sizes = [int(part.split("-")[1]) + 1 - int(part.split("-")[0]) for _, part in server.ranges]
    assert sizes == [len(PAIRS[index].image) for index in range(0, 25, 5)]


def test_later_blocks_are_fetched_in_time(source, server, monkeypatch):
    blocks_of(monkeypatch, 8)
    monkeypatch.setattr("grr_coca.data.prefetch.PREFETCH_DISTANCE", 8)
    size = len(source)
    order = TrainingOrder(Shuffle(size, 0), GlobalBatches(4, 12))
    batches = list(PrefetchOrder(order, Shuffle(size, 0), Blocks([size])))
    assert batches == list(order)
    requested = [block for refs in batches for block in refs.blocks]
    assert sorted(requested, key=lambda block: block.start) == [range(0, 8), range(8, 16), range(16, 24)]
    later = TrainingOrder(Shuffle(size, 0), GlobalBatches(4, 12, 5))
    assert list(PrefetchOrder(later, Shuffle(size, 0), Blocks([size]))) == batches[5:]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    shared = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        shared += [b for refs in PrefetchOrder(order, Shuffle(size, 0), Blocks([size])) for b in refs.blocks]
    assert sorted(shared, key=lambda block: block.start) == [range(0, 8), range(8, 16), range(16, 24)]


def test_blocks_of_a_mixture_equal_those_of_its_sources(monkeypatch):
    blocks_of(monkeypatch, 8)
    blocks = Blocks([10, 20])
    assert [blocks.block_of(sample) for sample in (0, 9, 10, 17, 18, 29)] == [
        range(0, 8),
        range(8, 10),
        range(10, 18),
        range(10, 18),
        range(18, 26),
        range(26, 30),
    ]


def test_corrupt_block_in_cache_is_fetched_again(source, server, own_cache):
    source[0]
    (block,) = (own_cache / "blocks").glob("*.block")
    block.write_bytes(b"\0" * block.stat().st_size)
    assert source[0].image == PAIRS[0].image
    assert len(server.ranges) == 2
    block.write_bytes(b"")
    assert source[0].image == PAIRS[0].image


def test_cache_keeps_the_most_recently_used(source, server, own_cache):
    file = source.paths[0]
    cache = BlockCache(4000)
    for start in range(0, 5000, 1000):
        cache.fetch(RemoteBlock(file, start, start + 1000))
        time.sleep(0.01)
    there = {path.stat().st_size for path in cache.folder.glob("*.block")}
    assert there == {1000}
    assert len(list(cache.folder.glob("*.block"))) == 3  # within nine tenths of the limit
    assert cache.fetch(RemoteBlock(file, 4000, 5000)).exists()
    assert len(server.ranges) == 5


def test_concurrent_readers_fetch_a_block_once(source, server):
    server.faults.append("503")
    threads = [threading.Thread(target=lambda: pickle.loads(pickle.dumps(source))[0]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.ranges) == 2


def test_full_disk_raises(source, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a block of http.* cannot be written"):
        source[0]


def test_cache_is_readable_by_its_user_only(source, own_cache):
    source[0]
    assert {Path(path).stat().st_mode & 0o077 for path in (own_cache / "blocks", own_cache / "shards")} == {0}
