"""Which images the arguments mean."""

import os
import threading
from pathlib import Path

import pytest
from support import real_pairs, shard_members, write_shard, write_tar

from grr_coca.common.errors import UserError
from grr_coca.data import image_files as find
from grr_coca.data.image_files import find_images
from grr_coca.data.images import MAX_BYTES
from grr_coca.data.sources.base import BadSample


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Some files, their content their own path."""
    names = [
        "b.png",
        "a.JPG",
        "notes.txt",
        "sub/deep/c.webp",
        "sub/d.gif",
        "sub/._d.gif",
        ".hidden/e.png",
        "sub/table.ods",
    ]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments):
    return [image.name for image in find_images(arguments)]


def test_folders_are_searched_recursively(tree):
    assert names(".") == ["a.JPG", "b.png", "sub/d.gif", "sub/deep/c.webp"]
    assert names("sub") == ["sub/d.gif", "sub/deep/c.webp"]


def test_patterns_find_images_and_tar_shards(tree):
    assert names("*") == ["a.JPG", "b.png"]
    assert names("sub/**/*.*") == ["sub/d.gif", "sub/deep/c.webp"]
    assert names(f"{tree}/[ab].*") == [f"{tree}/a.JPG", f"{tree}/b.png"]


def test_double_star_searches_subfolders(tree):
    everything = ["a.JPG", "b.png", "sub/d.gif", "sub/deep/c.webp"]
    assert names("**") == names("**/*") == names("**/**/*.*") == everything
    assert names("./**/*.webp") == ["sub/deep/c.webp"]
    assert names(f"{tree}/**/[cd].*") == [f"{tree}/sub/d.gif", f"{tree}/sub/deep/c.webp"]
    assert names("s*/**") == ["sub/d.gif", "sub/deep/c.webp"]
    assert names("sub/**/deep/*") == ["sub/deep/c.webp"]
    (tree / "sub" / "[x]").mkdir()
    (tree / "sub" / "[x]" / "e.png").write_text("x")
    assert names("**/e.png") == ["sub/[x]/e.png"]


def test_stars_do_not_follow_links_in_circles(tree):
    for name in ("up", "again"):
        (tree / "sub" / name).symlink_to("..")
    assert names("sub/**/*.*") == ["sub/d.gif", "sub/deep/c.webp"]


def test_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    (tree / "[1].png").write_text("x")
    assert names("[1].png") == ["[1].png"]


def test_named_file_counts_with_any_suffix(tree):
    assert names("notes.txt", "nowhere.png") == ["notes.txt", "nowhere.png"]


def test_images_are_unique_and_in_argument_order(tree):
    assert names("b.png", ".", "a.JPG") == ["b.png", "a.JPG", "sub/d.gif", "sub/deep/c.webp"]


def test_images_are_read_lazily(tree):
    (image,) = find_images(["b.png"])
    assert (image.read(), image.span.read(), image.path) == (b"b.png", b"b.png", Path("b.png"))
    (tree / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png: no such file"):
        image.read()


@pytest.mark.parametrize(
    "url",
    ["https://example.com/a.png", "s3://pairs/a.tar", "https://example.com/a.png?width=9", "HTTP://example.com/*"],
)
def test_url_is_named_with_both_slashes(tree, url):
    with pytest.raises(UserError) as error:
        find_images([url])[0].read()
    assert str(error.value) == f"{url}: URLs are not read here; download the file first"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no colons in names")
def test_folder_with_the_name_of_a_scheme_is_read(tree):
    (tree / "s3:").mkdir()
    (tree / "b.png").rename(tree / "s3:" / "b.png")
    assert find_images(["s3:/b.png"])[0].read() == b"b.png"


def test_rejects_too_large_files_before_reading(tree, monkeypatch):
    with Path("huge.tif").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    (image,) = find_images(["huge.tif"])
    for read in (image.read, image.span.read):
        with pytest.raises(BadSample, match=r"huge\.tif: too many bytes: 268,435,457"):
            read()


def test_names_that_are_not_utf8_are_found(tree):
    Path(os.fsdecode(os.fsencode(tree) + b"/sub/caf\xe9.png")).write_bytes(b"coffee")
    (image,) = (image for image in find_images(["sub"]) if "caf" in image.name)
    assert os.fsencode(image.name) == b"sub/caf\xe9.png"
    assert image.read() == b"coffee"


def test_empty_name_is_not_this_folder(tree):
    with pytest.raises(UserError, match="the path is empty"):
        find_images(["b.png", ""])


@pytest.mark.parametrize("argument", ["empty", "*.tif", "sub/*.xyz"])
def test_nothing_found_is_named(tree, argument):
    (tree / "empty").mkdir()
    (tree / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(UserError) as error:
        find_images([argument])
    assert str(error.value).startswith(f"{argument}: no image")


# --- Shards


def test_images_of_a_shard_need_no_captions(tmp_path):
    pairs = real_pairs(3)
    members = {"sub/._a.webp": b"of the Finder", **shard_members(pairs[:2]), "alone.webp": pairs[2].image}
    images = find_images([str(write_tar(tmp_path / "a.tar", members))])
    assert [image.read() for image in images] == [pair.image for pair in pairs]
    assert images[2].name == f"{tmp_path / 'a.tar'}: alone.webp"


def test_rejects_too_large_members(tmp_path, monkeypatch):
    (image,) = find_images([str(write_shard(tmp_path / "a.tar", real_pairs(1)))])
    monkeypatch.setattr(find, "MAX_BYTES", 100)
    with pytest.raises(BadSample, match=r"a\.tar: too many bytes: [\d,]+ \(limit 100\)"):
        image.read()


def test_shards_in_a_folder_are_opened(tmp_path):
    write_shard(tmp_path / "a.tar", real_pairs(2))
    write_shard(tmp_path / "b.tar", real_pairs(3))
    assert len(find_images([str(tmp_path)])) == len(find_images([f"{tmp_path}/*.tar"])) == 5


@pytest.mark.parametrize("keep", [0.3, 0.32, 0.4, 0.9])
def test_truncated_shard_yields_its_images_and_an_error(tmp_path, keep):
    path = write_shard(tmp_path / "a.tar", real_pairs(8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content.rstrip(b"\0")) * keep)])
    *whole, broken = find_images([str(path)])
    pairs = {pair.image for pair in real_pairs(8)}
    assert 0 < len(whole) < 8
    assert all(image.read() in pairs for image in whole)
    assert broken.hides_others
    with pytest.raises(UserError, match="not a complete uncompressed tar file"):
        broken.read()


@pytest.mark.parametrize("members", [{}, {"a.txt": b"no image"}])
def test_shard_without_images_is_an_image_that_fails(tmp_path, members):
    (image,) = find_images([str(write_tar(tmp_path / "a.tar", members))])
    with pytest.raises(UserError, match="has no images"):
        image.read()


# --- Tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,price\n0.webp,5\n1.webp,6\n"),
        ("a.csv", "path\n0.webp\n1.webp\n"),
        ("a.tsv", "id\tpath\n7\t0.webp\n8\t1.webp\n"),
        ("a.jsonl", '{"image": "0.webp", "caption": null}\n{"image": "1.webp", "caption": "a cat"}\n'),
        ("a.jsonl", '{"image": "0.webp"}\n{"image": "1.webp"}\n'),
        ("a.json", '[{"image": "0.webp"}, {"image": "1.webp"}]'),
        (
            "a.json",
            '{"images": [{"id": 0, "file_name": "0.webp"}, {"id": 1, "file_name": "1.webp"}], "annotations": []}',
        ),
    ],
)
def test_table_of_images_needs_no_captions(tmp_path, name, text):
    pairs = real_pairs(2)
    for number, pair in enumerate(pairs):
        (tmp_path / f"{number}.webp").write_bytes(pair.image)
    (tmp_path / name).write_text(text)
    images = find_images([str(tmp_path / name)])
    assert [image.read() for image in images] == [pair.image for pair in pairs]
    assert all("image" not in image.fields() for image in images)


def test_parquet_table_of_images_needs_no_captions(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (pair,) = real_pairs(1)
    (tmp_path / "0.webp").write_bytes(pair.image)
    parquet.write_table(pyarrow.Table.from_pylist([{"path": "0.webp", "price": 5}]), tmp_path / "a.parquet")
    (image,) = find_images([str(tmp_path / "a.parquet")])
    assert (image.read(), image.fields()) == (pair.image, {"price": 5})


def test_waits_only_for_named_pipes_that_were_passed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"image")
    (found,) = find_images([str(tmp_path)])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"a\.png: cannot be read \(not a regular file\)"):
        found.read()
    (given,) = find_images([str(path)])
    writing = threading.Thread(target=path.write_bytes, args=(b"through the pipe",))
    writing.start()
    assert given.read() == b"through the pipe"
    writing.join()


@pytest.mark.parametrize(("cores", "seconds", "largest"), [(2, 0.25, 32), (4, 0.25, 16), (16, 0.25, 8), (2, 0.0, 8)])
def test_calls_get_more_items_while_these_take_little_time(monkeypatch, cores, seconds, largest):
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    monkeypatch.setattr(find, "_SECONDS_PER_TASK", seconds)
    sizes = []

    def work(items):
        sizes.append(len(items))
        return [2 * item for item in items]

    batches = list(find.map_in_background(iter(range(330)), work, 32))
    assert [done for batch in batches for done in batch] == list(range(0, 660, 2))
    assert [len(batch) for batch in batches] == [32] * 10 + [10]
    assert (sizes[0], max(sizes)) == (8, largest)
