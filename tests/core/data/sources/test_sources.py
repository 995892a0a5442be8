"""Pairs from tar shards and from folders: by index, in any process, or an error that says what is wrong."""

import gzip
import os
import pickle
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from support import real_pairs, shard_members, warnings_of, with_caption, write_shard, write_tar

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import iterate_images
from grr_coca.data.sources.base import BadSample, Cause, RawPair, stable_id
from grr_coca.data.sources.folder import ImageFolder
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.shards import TarShards
from grr_coca.data.sources.views import Chain, Subset, every_caption, source_digest

PAIRS = real_pairs(12)


def as_folder(path, pairs):
    for pair in pairs:
        (path / pair.key).parent.mkdir(parents=True, exist_ok=True)
        (path / f"{pair.key}.webp").write_bytes(pair.image)
        (path / f"{pair.key}.txt").write_bytes(pair.caption.encode())
    return path


@pytest.fixture(params=["shards", "folder"])
def store(request, tmp_path):
    """Lay pairs out on disk in either form; returns the path to open."""

    def lay_out(pairs, name="set"):
        if request.param == "folder":
            return as_folder(tmp_path / name, pairs)
        return write_shard(tmp_path / f"{name}.tar", pairs)

    return lay_out


def tar_end(path) -> int:
    """Where a tar file's last member ends and its end marks begin."""
    with tarfile.open(path) as tar:
        tar.getmembers()
        return tar.offset


def contents(source) -> set[tuple[str, bytes, str]]:
    return {(pair.key, pair.image, pair.caption) for pair in (source[i] for i in range(len(source)))}


# --- Both forms


def test_pairs_round_trip_in_any_order_and_in_workers(store):
    source = open_source(str(store(PAIRS)))
    assert contents(source) == {(p.key, p.image, p.caption) for p in PAIRS}
    forward = [source[i] for i in range(len(source))]
    assert [source[i] for i in reversed(range(len(source)))] == forward[::-1]
    assert [source.caption(i) for i in range(len(source))] == [pair.caption for pair in forward]
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(len(again))] == forward


def test_pair_name_contains_its_location(store):
    path = store(PAIRS)
    source = open_source(str(path))
    assert str(path) in source[5].name
    assert source[5].key in source[5].name


def test_invalid_utf8_caption_names_the_pair(tmp_path):
    members = shard_members(PAIRS[:2])
    members[f"{PAIRS[1].key}.txt"] = "Käse".encode("latin-1")
    folder = as_folder(tmp_path / "set", PAIRS[:2])
    (folder / f"{PAIRS[1].key}.txt").write_bytes("Käse".encode("latin-1"))
    for source in (open_source(str(write_tar(tmp_path / "set.tar", members))), open_source(str(folder))):
        with pytest.raises(UserError, match=rf"{PAIRS[1].key}\.txt: not UTF-8"):
            [source.caption(i) for i in range(2)]


@pytest.mark.parametrize(("text", "caption"), [("\ufeffa dog", "a dog"), ("ein Käse 🧀\n", "ein Käse 🧀\n")])
def test_caption_keeps_any_text_without_byte_order_mark(store, text, caption):
    assert open_source(str(store([with_caption(PAIRS[0], text)])))[0].caption == caption


def test_lines_of_a_text_file_are_captions(store):
    texts = ["one\ntwo\r\n\n three \n", "only one\n\n", "\n", "a\rb"]
    path = store([replace(pair, caption=text) for pair, text in zip(PAIRS, texts, strict=False)])
    source = open_source(str(path))
    found = {pair.key: pair.captions for pair in (source[i] for i in range(len(source)))}
    assert found == {
        PAIRS[0].key: ("one", "two\r", " three "),
        PAIRS[1].key: ("only one\n\n",),
        PAIRS[2].key: ("\n",),
        PAIRS[3].key: ("a\rb",),
    }, "white space is cleaned later"
    assert [source.captions(i) for i in range(4)] == [source[i].captions for i in range(4)]
    assert len(every_caption(Subset(source, [0, 1]))) == 4


@pytest.mark.parametrize("key", ["a.b", os.fsdecode(b"caf\xe9"), "sub/" + "long-name-" * 20])
def test_keys_accept_dots_folders_and_invalid_utf8(store, key):
    source = open_source(str(store([RawPair(key, "", PAIRS[0].image, "a cup")])))
    assert (source[0].key, source[0].image) == (key, PAIRS[0].image)
    assert 0 <= stable_id(source.name(0)) != stable_id("cafe")


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "PNG", "webp", "gif", "bmp", "TIF", "tiff"])
@pytest.mark.parametrize("text", ["txt", "TXT"])
def test_suffixes_of_any_case_are_found(tmp_path, suffix, text):
    contents = {f"cat.{suffix}": b"pixels", f"cat.{text}": b"a cat"}
    (tmp_path / "folder").mkdir()
    for name, content in contents.items():
        (tmp_path / "folder" / name).write_bytes(content)
    for path in (tmp_path / "folder", *([write_tar(tmp_path / "a.tar", contents)] if text == "txt" else [])):
        source = open_source(str(path))
        assert (source[0].key, source[0].image, source[0].caption) == ("cat", b"pixels", "a cat")


def test_folder_named_like_an_image_is_ignored(tmp_path):
    path = write_shard(tmp_path / "a.tar", PAIRS[:1])
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("photos.jpg")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    assert len(TarShards([path])) == 1
    folder = as_folder(tmp_path / "set", PAIRS[:1])
    as_folder(folder / "more.png", PAIRS[1:2])
    assert len(ImageFolder(folder)) == 2


def test_ignores_other_files_next_to_pairs(tmp_path):
    hidden = {f"._{PAIRS[0].key}{suffix}": b"of the Finder" for suffix in (".webp", ".txt", ".json")}
    extra = {"cat.json": b"{}", "README": b"", "cat.npy": b"123", **hidden}
    shard = write_tar(tmp_path / "a.tar", {**extra, **shard_members(PAIRS[:3])})
    folder = as_folder(tmp_path / "folder", PAIRS[:3])
    for name, content in extra.items():
        (folder / name).write_bytes(content)
    assert len(open_source(str(shard))) == len(open_source(str(folder))) == 3


# --- Shards


def test_pair_members_are_found_in_any_order(tmp_path):
    members = shard_members(PAIRS)
    shuffled = dict(sorted(members.items(), key=lambda member: member[0][::-1]))
    assert contents(TarShards([write_tar(tmp_path / "a.tar", shuffled)])) == {
        (p.key, p.image, p.caption) for p in PAIRS
    }


def test_image_without_a_caption_is_a_named_bad_sample(tmp_path):
    members = shard_members(PAIRS[:3])
    del members[f"{PAIRS[1].key}.txt"]
    shard = TarShards([write_tar(tmp_path / "a.tar", members)])
    assert len(shard) == 3
    assert (shard[0].key, shard[2].key) == (PAIRS[0].key, PAIRS[2].key)
    with pytest.raises(BadSample, match=rf"a\.tar: {PAIRS[1].key}: the image has no caption") as caught:
        shard[1]
    assert caught.value.cause is Cause.NO_CAPTION


def test_invalid_shard_raises_with_its_name(tmp_path):
    packed = gzip.compress(write_shard(tmp_path / "plain.tar", PAIRS).read_bytes())
    text = write_tar(tmp_path / "text.tar", {"cat.txt": b"a cat"}).read_bytes()
    contents = {b"this is no tar file" * 100: "not", b"": "not", PAIRS[0].image: "not", packed: "not", text: "no pairs"}
    for content, message in contents.items():
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.tar: {message}(?: a readable, uncompressed tar|$|;|:)"):
            TarShards([tmp_path / "a.tar"])


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_shard_keeps_its_intact_pairs(tmp_path, share):
    path = write_shard(tmp_path / "a.tar", PAIRS)
    with tarfile.open(path) as tar:
        ends = [member.offset_data + member.size for member in tar]  # image, text, image, text …
    size = int(tar_end(path) * share) | 1
    path.write_bytes(path.read_bytes()[:size])
    num_intact = sum(end <= size for end in ends[1::2])
    with warnings_of("grr_coca.data.sources.shards") as messages:
        shard = TarShards([path])
    assert [shard[i].image for i in range(num_intact)] == [pair.image for pair in PAIRS[:num_intact]]
    for i in range(num_intact, len(shard)):
        with pytest.raises(BadSample, match=r"a\.tar: ") as caught:
            shard[i]
        assert caught.value.cause in (Cause.CUT_OFF, Cause.NO_CAPTION)
    assert len(shard) - num_intact <= 1
    assert shard.truncated == [path]
    (message,) = messages
    assert message.startswith(f"{path}: truncated, so only its complete pairs are used ({num_intact})")


def test_shard_cut_between_two_pairs_is_named(tmp_path):
    path = write_shard(tmp_path / "a.tar", PAIRS[:6])
    end = tar_end(path)
    longer = write_shard(path, PAIRS)
    longer.write_bytes(longer.read_bytes()[:end])
    with warnings_of("grr_coca.data.sources.shards") as messages:
        shard = TarShards([path])
    assert len(shard) == 6
    assert shard.truncated == [path]
    assert len(messages) == 1


def test_tar_files_one_after_another_are_read_to_the_end(tmp_path):
    parts = [write_shard(tmp_path / f"{i}.part", PAIRS[4 * i : 4 * i + 4]).read_bytes() for i in range(3)]
    path = tmp_path / "a.tar"
    path.write_bytes(parts[0] + bytes(2**20) + parts[1] + parts[2])
    with warnings_of("grr_coca.data.sources.shards") as messages:
        assert contents(TarShards([path])) == {(p.key, p.image, p.caption) for p in PAIRS}
    assert [image.read() for image in iterate_images(str(path))] == [pair.image for pair in PAIRS]
    assert messages == []


def test_shard_with_a_hole_is_named(tmp_path):
    path = write_shard(tmp_path / "a.tar", PAIRS)
    with tarfile.open(path) as tar:
        fifth, tenth = (tar.getmembers()[2 * i].offset for i in (5, 10))
    content = path.read_bytes()
    path.write_bytes(content[:fifth] + bytes(tenth - fifth + 512) + content[tenth + 512 :])  # as of a broken download
    with warnings_of("grr_coca.data.sources.shards") as messages:
        assert len(TarShards([path])) == 5
    assert messages == [f"{path}: truncated, so only its complete pairs are used (5); copy or download this file again"]
    *images, last = iterate_images(str(path))
    assert [image.read() for image in images] == [pair.image for pair in PAIRS[:5]]
    with pytest.raises(
        UserError, match=r"a\.tar: not a complete uncompressed tar .*\(a header is corrupt or truncated\)"
    ):
        last.read()


# --- Folders


def test_folder_is_read_with_the_folders_in_it_in_sorted_order(tmp_path):
    as_folder(tmp_path / "b", [RawPair("1", "", b"1", "one")])
    as_folder(tmp_path / "a", [RawPair("2", "", b"2", "two")])
    as_folder(tmp_path, [RawPair("c", "", b"3", "three")])
    source = ImageFolder(tmp_path)
    assert [source[i].key for i in range(3)] == ["a/2", "b/1", "c"]


def test_names_of_many_images_are_sorted_in_little_memory(tmp_path, monkeypatch):
    names = [f"{i:06}.jpg" for i in range(10_000)]
    listed = [(str(tmp_path), [], ["b.jpg"]), (f"{tmp_path}/a.b", [], names), (f"{tmp_path}/a", [], names[:1])]
    monkeypatch.setattr("grr_coca.data.sources.folder.walk_visible", lambda *_: listed)
    tracemalloc.start()
    source = ImageFolder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [source.names[i] for i in (0, 1, 2, 10_001)] == ["a/000000.jpg", "a.b/000000.jpg", "a.b/000001.jpg", "b.jpg"]
    assert peak < 200 * len(names)


def test_unreadable_folder_raises_with_its_name(tmp_path, lock):
    folder = as_folder(tmp_path / "set", PAIRS[:2])
    unlock = lock(as_folder(folder / "more", PAIRS[2:4]))
    with pytest.raises(
        UserError, match=rf"{folder}/more: cannot be listed \(Permission denied\); make this folder readable"
    ):
        open_source(str(folder))
    unlock()
    assert len(open_source(str(folder))) == 4


def test_folder_source_excludes_trash_and_follows_links(tmp_path, lock):
    """`data/test_walk` has the rules: what is hidden or deleted is left out, and links are followed once."""
    folder, disk = as_folder(tmp_path / "set", PAIRS[:2]), as_folder(tmp_path / "disk", PAIRS[2:4])
    as_folder(folder / "more" / ".thumbnails" / "small", PAIRS[4:5])
    lock(as_folder(folder / "lost+found", PAIRS[4:5]))
    for name, target in {"disk": disk, "again": disk, "up": tmp_path}.items():
        (folder / name).symlink_to(target)
    source = ImageFolder(folder)
    keys = {source[index].key for index in range(len(source))}
    assert keys == {*(pair.key for pair in PAIRS[:2]), *(f"again/{pair.key}" for pair in PAIRS[2:4])}


def test_too_large_caption_file_is_a_bad_sample(tmp_path):
    (tmp_path / "a.jpg").write_bytes(PAIRS[0].image)
    (tmp_path / "a.txt").write_bytes(b"log " * 2**18 + b".")
    with pytest.raises(BadSample, match=r"a\.txt: too many bytes: 1,048,577 \(limit 1,048,576\)") as caught:
        ImageFolder(tmp_path).caption(0)
    assert caught.value.cause is Cause.TOO_LARGE


def test_too_large_shard_members_are_bad_samples(tmp_path, monkeypatch):
    members = {"a.jpg": b"pixels", "a.txt": b"log " * 2**18 + b".", "b.jpg": b"many pixels", "b.txt": b"a dog"}
    monkeypatch.setattr("grr_coca.data.sources.tar.MAX_BYTES", 10)
    source = TarShards([write_tar(tmp_path / "a.tar", members)])
    for index, message in enumerate(
        [r"the caption: too many bytes: 1,048,577 \(limit 1,048,576\)", "the image file is too large"]
    ):
        with pytest.raises(BadSample, match=rf"a\.tar: {'ab'[index]}: .*{message}") as caught:
            source[index]
        assert caught.value.cause is Cause.TOO_LARGE


def test_image_file_without_a_caption_names_both(tmp_path):
    folder = as_folder(tmp_path, PAIRS[:2])
    (folder / f"{PAIRS[0].key}.txt").unlink()
    source = ImageFolder(folder)
    bad = next(i for i in range(2) if PAIRS[0].key in source.name(i))
    with pytest.raises(
        BadSample, match=rf"{PAIRS[0].key}\.webp: the image has no caption; expected it in {PAIRS[0].key}\.txt"
    ):
        source[bad]
    assert source[1 - bad].key == PAIRS[1].key


# --- Which reader a path asks for


def test_pattern_opens_all_shards_that_match_in_sorted_order(tmp_path):
    for i in (2, 0, 1):
        write_shard(tmp_path / f"train-{i}.tar", PAIRS[i : i + 1])
    write_shard(tmp_path / "val-0.tar", PAIRS[5:6])
    source = open_source(str(tmp_path / "train-*.tar"))
    assert [source[i].key for i in range(len(source))] == [pair.key for pair in PAIRS[:3]]


def test_shard_suffix_ignores_case(tmp_path):
    path = write_shard(tmp_path / "A.TAR", PAIRS)
    for argument in (path, tmp_path):
        assert contents(open_source(str(argument))) == {(p.key, p.image, p.caption) for p in PAIRS}


def test_folder_of_shards_opens_the_shards(tmp_path):
    write_shard(tmp_path / "0.tar", PAIRS[:2])
    write_shard(tmp_path / "1.tar", PAIRS[2:4])
    (tmp_path / "._0.tar").write_bytes(b"of the Finder")
    assert len(open_source(str(tmp_path))) == 4


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="the file whose reading fails is part of Linux")
@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.json", "pairs.token"])
def test_table_on_a_failing_drive_raises_a_user_error(tmp_path, name):
    (tmp_path / name).symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=rf"{name}: cannot be read \("):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "the path is empty"),
        ("tran.tar", r"tran\.tar: no such file or folder.* has empty, pairs\.xlsx, train-00000\.tar"),
        ("no/such/*.tar", "no such file or folder"),
        ("pairs.xlsx", r"pairs\.xlsx: unsupported format"),
        ("empty", r"no images; expected NAME\.jpg .* next to NAME\.txt, or \.tar shards"),
    ],
)
def test_path_without_pairs_error_states_its_content(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "train-00000.tar", PAIRS[:1])
    (tmp_path / "pairs.xlsx").write_text("path,caption")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_source(path)


def test_dot_is_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(as_folder(tmp_path, PAIRS[:2]))
    assert len(open_source(".")) == 2


@pytest.mark.parametrize("folder", ["set [2024]", "what?", "a*b"])
def test_existing_path_with_any_characters_is_opened(tmp_path, folder):
    shard = write_shard(tmp_path / folder / "train [1].tar", PAIRS[:2])
    assert len(open_source(str(shard))) == 2


# --- What a source is known by


def test_source_identity_is_its_length_and_file_names(store, tmp_path):
    known = source_digest(open_source(str(store(PAIRS))))
    assert known == source_digest(open_source(str(store(PAIRS))))
    assert known != source_digest(open_source(str(store(PAIRS[:11], "fewer"))))
    path = store(PAIRS, "moved/set")
    assert known == source_digest(open_source(str(path))), "where it lies does not count"
    other = path if path.suffix else next(path.glob("*.webp"))
    renamed = other.rename(other.with_stem("0"))
    assert known != source_digest(open_source(str(renamed if path.suffix else path)))


def test_table_is_known_by_its_name_and_size(tmp_path):
    folder = as_folder(tmp_path, PAIRS[:1])
    table = folder / "pairs.csv"
    seen = []
    for caption in ("a dog", "a cat", "a bird"):
        table.write_text(f"image,caption\n{PAIRS[0].key}.webp,{caption}\n")
        seen.append(source_digest(open_source(str(table))))
    assert seen[0] == seen[1] != seen[2]
    assert seen[2] != source_digest(open_source(str(table.rename(folder / "others.csv"))))


def test_digest_of_a_view_depends_on_its_pairs(store):
    source = open_source(str(store(PAIRS)))
    views = [Subset(source, [0, 1]), Subset(source, [0, 2]), Subset(source, [2, 0]), Chain([source, source]), source]
    assert len({source_digest(view) for view in views}) == len(views)
    assert source_digest(Subset(source, [0, 1])) == source_digest(views[0])


# --- Subsets


def test_source_ends_after_its_last_pair(store):
    """Python goes on through a sequence until an IndexError."""
    source = open_source(str(store(PAIRS)))
    assert len(list(source)) == len(PAIRS)
    for index in (-1, len(PAIRS)):
        with pytest.raises(IndexError):
            source.caption(index)


def test_subset_has_the_requested_pairs_in_order(store):
    source = open_source(str(store(PAIRS)))
    subset = Subset(source, [7, 0, 3])
    assert [subset[i] for i in range(len(subset))] == [source[7], source[0], source[3]]
    assert subset.caption(0) == source.caption(7)
    assert subset.image_name(0) == source.image_name(7)
