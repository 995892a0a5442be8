"""`grr-coca data`: what it says about pairs, and the shards that it writes."""

import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import (
    encode_image,
    hide_packages,
    no_space_left,
    real_pairs,
    shard_members,
    with_caption,
    write_shard,
    write_tar,
)

from grr_coca.data import convert as convert_module
from grr_coca.data.convert import Conversion, convert, source_state
from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import ByImage

PAIRS = real_pairs(20)


@pytest.fixture
def spoiled(tmp_path):
    """20 pairs: two that are broken, one caption twice, one image twice."""
    pairs = list(PAIRS)
    pairs[4] = with_caption(pairs[4], f"  {pairs[3].caption.upper()} ")
    members = shard_members(pairs)
    members[f"{pairs[6].key}.webp"] = pairs[5].image
    members[f"{pairs[10].key}.webp"] = b"<html>404</html>"
    members[f"{pairs[11].key}.txt"] = b" "
    return write_tar(tmp_path / "a.tar", members)


# --- check


def test_check_counts_broken_and_duplicate_items(grr_coca, spoiled, tmp_path):
    sheet = tmp_path / "sheet.png"
    result = grr_coca("data", "check", spoiled, "--sheet", sheet, "--json")
    assert (result.code, result.err) == (1, f"contact sheet     {sheet}\n")
    report = json.loads(result.out)
    assert report["num_pairs"] == report["num_images"] == report["num_read"] == 20
    assert report["num_captions"] == 18
    assert report["broken"] == {"not an image": 1, "empty caption": 1}
    assert PAIRS[10].key in report["examples"]["not an image"][0]
    assert PAIRS[11].key in report["examples"]["empty caption"][0]
    kept = [PAIRS[i].caption.lower() for i in range(20) if i not in (4, 10, 11)] + [PAIRS[3].caption.lower()]
    assert report["duplicate_captions"] == 18 - len(set(kept))
    assert report["duplicate_images"] == 1
    assert report["image_sizes"] == {"64x64": 18}
    assert sum(report["caption_words"].values()) == 18
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width > 8 * 64


def test_check_for_users_names_the_broken_and_the_truncated(grr_coca, spoiled, tmp_path):
    data = spoiled.read_bytes()
    spoiled.write_bytes(data[: data.index(PAIRS[18].image) + 9])
    result = grr_coca("data", "check", spoiled, "--sheet", tmp_path / "sheet.png")
    assert "1 × not an image" in result.out
    assert f"{spoiled}: {PAIRS[10].key}: not an image in a supported format" in result.out
    assert f"shards            1, truncated: {spoiled}" in result.out
    assert "cut off by the end of a truncated shard" in result.out
    assert "contact sheet" in result.out


def test_lone_surrogates_in_names_are_escaped(grr_coca, tmp_path):
    (tmp_path / "a.png").write_bytes(encode_image(Image.new("RGB", (8, 8))))
    rows = [{"image": "a.png", "caption": "a cat"}, {"image": "\ud83d.png", "caption": "a dog"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = grr_coca("data", "check", tmp_path / "pairs.jsonl", "--sheet", tmp_path / "sheet.png")
    assert (result.code, r"\ud83d.png" in result.out) == (1, True)


def test_without_matplotlib_the_contact_sheet_has_words(grr_coca, tmp_path, monkeypatch):
    hide_packages(monkeypatch, "matplotlib")
    path, sheet = write_shard(tmp_path / "a.tar", PAIRS[:1]), tmp_path / "sheet.png"
    assert grr_coca("data", "check", path, "--sheet", sheet).code == 0
    with Image.open(sheet) as image:
        below = np.asarray(image.convert("L"))[80:]
    assert (below < 128).sum() > 20


def test_contact_sheet_shows_the_images(grr_coca, tmp_path):
    red = encode_image(Image.new("RGB", (50, 100), "red"))
    path = write_tar(tmp_path / "a.tar", {"0.png": red, "0.txt": b"red"})
    grr_coca("data", "check", path, "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        counts = {colour: count for count, colour in image.convert("RGB").getcolors(2**24)}
    assert 0.4 < counts[(255, 0, 0)] / 144**2 < 0.55, "half of the square cell, at its own aspect"


@pytest.mark.parametrize(("image", "text"), [(b"<html>", b"a cat"), (PAIRS[0].image, b" \n"), (b"", b"a cat")])
def test_contact_sheet_marks_broken_images(grr_coca, tmp_path, image, text):
    path = write_tar(tmp_path / "a.tar", {"0.webp": image, "0.txt": text})
    grr_coca("data", "check", path, "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(2**24)}
    assert (178, 34, 34) in colours, "a firebrick frame"


def test_sheet_replaces_only_images_outside_the_data(grr_coca, refused, spoiled, tmp_path, monkeypatch):
    table = tmp_path / "pairs.png"
    table.write_bytes(spoiled.read_bytes())
    monkeypatch.setattr("grr_coca.data.sources.open.open_source", lambda _: open_source(str(spoiled)))
    assert "this input would be overwritten" in refused("data", "check", table, "--sheet", table)
    assert "unsupported format '.csv'" in refused("data", "check", spoiled, "--sheet", tmp_path / "pairs.csv")


def test_full_disk_for_the_sheet_still_shows_the_stats(grr_coca, spoiled, tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", no_space_left)
    result = grr_coca("data", "check", spoiled, "--sheet", tmp_path / "sheet.png")
    assert result.code == 2
    assert "sheet.png: cannot be written (No space left on device)" in result.err
    assert "images            20" in result.out
    assert "contact sheet" not in result.out


def test_no_sheet_is_written_among_the_images_of_a_folder(grr_coca, refused, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.webp").write_bytes(PAIRS[0].image)
    (folder / "a.txt").write_text("a drawing")
    assert "pass a path outside that folder to --sheet" in refused(
        "data", "check", folder, "--sheet", folder / "sheet.png"
    )
    assert grr_coca("data", "check", folder, "--sheet", tmp_path / "sheet.png").code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "a.webp"]


def test_one_broken_pair_or_truncated_shard_is_exit_code_1(grr_coca, tmp_path):
    members = shard_members(PAIRS[:4])
    shard = write_tar(tmp_path / "a.tar", members)
    assert grr_coca("data", "check", shard).code == 0
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(PAIRS[3].image) - 600])
    assert grr_coca("data", "check", shard).code == 1
    assert grr_coca("data", "check", write_tar(tmp_path / "b.tar", members | {f"{PAIRS[0].key}.txt": b""})).code == 1
    broken = write_tar(tmp_path / "c.tar", {"a.webp": b"torn", "a.txt": b"a cat"})
    assert grr_coca("data", "convert", broken, tmp_path / "out").code == 1


def test_rows_of_one_image_count_as_one_image(grr_coca, tmp_path):
    for name in ("a", "b", "copy"):
        (tmp_path / f"{name}.webp").write_bytes(PAIRS[name == "b"].image)
    rows = ["a.webp,one", "a.webp,two", "a.webp,three", "b.webp,four", "copy.webp,five"]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows]))
    report = json.loads(grr_coca("data", "check", tmp_path / "pairs.csv", "--json").out)
    assert (report["num_pairs"], report["num_images"], report["num_captions"]) == (5, 3, 5)
    assert (report["duplicate_images"], report["image_sizes"]) == (1, {"64x64": 3})
    result = grr_coca("data", "check", tmp_path / "pairs.csv").out
    assert "pairs             5\nimages            3\ncaptions          5\n" in result


# --- stats


def test_stats_count_words_and_sizes(grr_coca, spoiled):
    result = grr_coca("data", "stats", spoiled, "--json")
    report = json.loads(result.out)
    assert report["num_captions"] == 20
    read = [pair for i, pair in enumerate(PAIRS) if i not in (4, 11)]  # one repeats another, one is empty
    assert report["vocabulary"] == len({word for pair in read for word in pair.caption.lower().split()})
    assert report["shards"] == 1
    assert report["image_sizes"] == {"64x64": 19}


def test_stats_look_at_a_sample_of_a_large_source(grr_coca, spoiled, monkeypatch):
    monkeypatch.setattr("grr_coca.data.dataset_stats.NUM_CAPTIONS", 5)
    result = grr_coca("data", "stats", spoiled)
    assert "pairs             20, 5 of them inspected" in result.out
    assert sum(line.strip().endswith("█" * 40) for line in result.out.splitlines()) >= 1


def test_stats_count_unreadable_and_long_captions(grr_coca, tmp_path):
    members = shard_members([with_caption(PAIRS[0], "far " * 100), *PAIRS[1:9]])
    for pair in PAIRS[1:8]:
        del members[f"{pair.key}.txt"]
    path = write_tar(tmp_path / "a.tar", members)
    report = json.loads(grr_coca("data", "stats", path, "--json").out)
    assert report["broken"] == {"no caption": 7}
    assert len(report["examples"]["no caption"]) == 5
    assert report["num_captions"] == 2
    assert report["caption_words"]["89+"] == 1


BOMB = encode_image(Image.new("L", (4, 4)), "gif")
BOMB = BOMB[:6] + b"\xff\xff\xff\xff" + BOMB[10:]  # 65,535 × 65,535 pixels
AVIF = encode_image(Image.new("RGB", (16, 16)), "AVIF").replace(
    b"pitm", b"xxxx"
)  # for which Pillow raises RuntimeError


@pytest.mark.parametrize("bad", [BOMB, AVIF], ids=["bomb", "avif"])
def test_stats_pass_over_a_bomb_and_a_corrupt_image(grr_coca, tmp_path, bad):
    path = write_tar(tmp_path / "a.tar", {"0.gif": bad, "0.txt": b"a", "1.webp": PAIRS[0].image, "1.txt": b"b"})
    assert json.loads(grr_coca("data", "stats", path, "--json").out)["image_sizes"] == {"64x64": 1}


# --- convert


def test_folder_name_that_is_not_utf8_works(grr_coca, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    for number, caption in enumerate(("a drawing", " ")):
        (folder / f"{number}.webp").write_bytes(PAIRS[number].image)
        (folder / f"{number}.txt").write_text(caption)
    report = json.loads(grr_coca("data", "check", folder, "--sheet", tmp_path / "sheet.png", "--json").out)
    assert report["examples"]["empty caption"][0].startswith(f"{folder / '1.webp'}: ")
    for _ in range(2):
        result = grr_coca("data", "convert", folder, tmp_path / "out")
        assert (result.code, result.err) == (0, "")


def read_all(path):
    source = open_source(str(path))
    return [source[i] for i in range(len(source))]


def test_converted_shards_hold_the_good_pairs_as_they_were(grr_coca, spoiled, tmp_path):
    out = tmp_path / "out"
    result = grr_coca("data", "convert", spoiled, out, "--pairs-per-shard", 8)
    assert result.code == 0
    assert result.out == f"18 images written to {out}; excluded: 1 not an image, 1 empty caption\n"
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["00000.tar", "00001.tar", "00002.tar"]
    source = open_source(str(spoiled))
    good = [source[i] for i in range(20) if i not in (10, 11)]
    pairs = read_all(out)
    assert [(pair.image, pair.captions) for pair in pairs] == [(pair.image, pair.captions) for pair in good]
    assert [pair.key for pair in pairs][:2] == ["000000000", "000000001"]
    with tarfile.open(out / "00000.tar") as tar:
        assert tar.getnames()[:3] == ["000000000.webp", "000000000.txt", "000000000.json"]
        about = json.load(tar.extractfile("000000000.json"))
    assert about == {"key": PAIRS[0].key, "caption": PAIRS[0].caption}


def test_several_captions_come_back(grr_coca, tmp_path):
    names = [f"{i}.webp" for i in range(6)]
    for name, pair in zip(names, PAIRS, strict=False):
        (tmp_path / name).write_bytes(pair.image)
    captions = [[f"{pair.caption} {k}" for k in range(1 + i % 3)] for i, pair in enumerate(PAIRS[:6])]
    lines = [json.dumps({"image": name, "captions": texts}) for name, texts in zip(names, captions, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert grr_coca("data", "convert", tmp_path / "a.jsonl", tmp_path / "out").code == 0
    assert [list(pair.captions) for pair in read_all(tmp_path / "out")] == captions


def test_caption_with_a_line_end_stays_one_in_shards(grr_coca, tmp_path):
    (tmp_path / "a.webp").write_bytes(PAIRS[0].image)
    (tmp_path / "a.csv").write_text('image,caption\na.webp,"a cup\nof tea"\n')
    assert grr_coca("data", "convert", tmp_path / "a.csv", tmp_path / "out").code == 0
    assert read_all(tmp_path / "out")[0].captions == ("a cup of tea",)


def table_of_captions(folder, captions):
    """A table with a row for each caption: first the first captions of all images, then the second ones, and so on."""
    for i, pair in enumerate(PAIRS[: len(captions)]):
        (folder / f"{i}.webp").write_bytes(pair.image)
    rows = [f"{i}.webp,{row[k]}" for k in range(3) for i, row in enumerate(captions) if k < len(row)]
    path = folder / "pairs.csv"
    path.write_text("\n".join(["image,caption", *rows]))
    return path


def test_rows_of_one_image_become_one_pair(grr_coca, tmp_path):
    captions = [[f"image {i} seen {k}" for k in range(1 + i % 3)] for i in range(6)]
    table = table_of_captions(tmp_path, captions)
    result = grr_coca("data", "convert", table, tmp_path / "out", "--pairs-per-shard", 2)
    assert result.out == f"6 images written to {tmp_path / 'out'}\n"
    pairs = read_all(tmp_path / "out")
    assert [(pair.image, list(pair.captions)) for pair in pairs] == [
        (pair.image, texts) for pair, texts in zip(PAIRS, captions, strict=False)
    ]
    assert [pair.key for pair in pairs] == [f"{i:09d}" for i in range(6)]
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3


def test_bad_caption_of_several_is_skipped_and_counted(grr_coca, tmp_path):
    table = table_of_captions(tmp_path, [[" ", "a cat", "a pet"], ["a dog", " "], [" ", "  "], ["a", "b"], ["c"]])
    (tmp_path / "3.webp").write_bytes(b"torn")
    result = grr_coca("data", "convert", table, tmp_path / "out")
    assert result.out == f"3 images written to {tmp_path / 'out'}; excluded: 3 empty caption, 1 not an image\n"
    assert [pair.captions for pair in read_all(tmp_path / "out")] == [("a cat", "a pet"), ("a dog",), ("c",)]


def test_does_not_continue_a_conversion_of_an_older_version(grr_coca, refused, tmp_path):
    table = table_of_captions(tmp_path, [["a cat", "a pet"], ["a dog"]])
    grr_coca("data", "convert", table, tmp_path / "out")
    path = tmp_path / "out" / "convert.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_images": 3}))
    assert "contains a conversion of an older version of" in refused("data", "convert", table, tmp_path / "out")


def test_only_large_images_are_downscaled(grr_coca, tmp_path):
    wide = encode_image(decode_image(PAIRS[0].image, "a").resize((200, 100)))
    path = write_tar(tmp_path / "a.tar", {"0.png": wide, "0.txt": b"a", "1.webp": PAIRS[1].image, "1.txt": b"b"})
    grr_coca("data", "convert", path, tmp_path / "out", "--image-size", 64)
    first, second = read_all(tmp_path / "out")
    assert decode_image(first.image, "").size == (128, 64)
    assert second.image == PAIRS[1].image


def test_interrupted_conversion_continues_and_ends_up_the_same(tmp_path):
    path = write_shard(tmp_path / "a.tar", PAIRS)
    images = ByImage(open_source(str(path)))
    conversion = Conversion(str(path), len(images), 6, None)

    def stop_at_13(done):
        if done == 13:
            raise KeyboardInterrupt

    convert(images, conversion, tmp_path / "whole", lambda done: None)
    with pytest.raises(KeyboardInterrupt):
        convert(images, conversion, tmp_path / "out", stop_at_13)
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == ["00000.tar", "00001.tar"]
    first = (tmp_path / "out" / "00000.tar").stat().st_mtime_ns
    for name in (".00002.4321.tmp", ".00001_stats.json.4321.0a1b2c3d.partial"):
        (tmp_path / "out" / name).write_bytes(b"half a file of a process that was killed")
    counts = convert(images, conversion, tmp_path / "out", lambda done: None)
    assert counts == {"written": 20}
    assert (tmp_path / "out" / "00000.tar").stat().st_mtime_ns == first
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "out")]
    assert files[0] == files[1]


def test_rejects_a_folder_that_is_not_empty(refused, spoiled, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("thesis.tex", "thesis.tmp", ".notes.partial"):
        path = out / name
        path.write_text("precious")
        assert f"not empty (it contains {name}); pass a new folder" in refused("data", "convert", spoiled, out)
        assert [path.name for path in out.iterdir()] == [name]
        path.unlink()


def test_rejects_the_folder_of_another_conversion(grr_coca, refused, spoiled, tmp_path):
    grr_coca("data", "convert", spoiled, tmp_path / "out")
    message = refused("data", "convert", spoiled, tmp_path / "out", "--image-size", 32)
    assert "contains another conversion" in message


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_conversion_rejects_a_changed_source(grr_coca, refused, tmp_path, kind):
    source = tmp_path / ("pairs.csv" if kind == "table" else "")
    captions = tmp_path / ("pairs.csv" if kind == "table" else "a.txt")
    text = "image,caption\na.webp,{}\n" if kind == "table" else "{}"
    (tmp_path / "a.webp").write_bytes(PAIRS[0].image)
    captions.write_text(text.format("a drawing"))
    for _ in range(2):
        assert grr_coca("data", "convert", source, tmp_path / "out").code == 0
    captions.write_text(text.format("another drawing"))
    assert "contains a conversion of an older version of" in refused("data", "convert", source, tmp_path / "out")


@pytest.mark.ci
def test_memory_does_not_grow_with_the_number_of_captions(tmp_path):
    class Source:
        def __len__(self):
            return 20_000

        def container(self, _):
            return str(tmp_path)

        def image_name(self, index):
            return str(tmp_path / f"{index}.jpg")

    (tmp_path / "7.txt").write_text("a cat")
    (tmp_path / "9.TXT").write_text("a dog")
    tracemalloc.start()
    size, _ = source_state(Source())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == len("a cat") + len("a dog")
    assert peak < 1_000_000


def test_conversion_that_an_older_version_began_continues(grr_coca, spoiled, tmp_path):
    grr_coca("data", "convert", spoiled, tmp_path / "out")
    path = tmp_path / "out" / "convert.json"
    settings = json.loads(path.read_text())
    del settings["source_bytes"], settings["source_changed_ns"]
    path.write_text(json.dumps(settings, indent=2))
    assert grr_coca("data", "convert", spoiled, tmp_path / "out").code == 0


def test_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    images = ByImage(open_source(str(write_shard(tmp_path / "a.tar", PAIRS))))

    monkeypatch.setattr(convert_module.os, "fsync", no_space_left)
    with pytest.raises(ValueError, match="cannot be written to \\(No space left on device\\)"):
        convert(images, Conversion("a", 20, 6, None), tmp_path / "out", lambda done: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_file_without_permission_reports_one_line(refused, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("grr_coca.data.sources.open.open_source", deny)
    for action in ("check", "stats"):
        assert refused("data", action, "a.csv") == "error: a.csv: cannot be read or written (Permission denied)\n"


def test_error_without_a_file_name_keeps_its_traceback(grr_coca, monkeypatch):
    def fail(path):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("grr_coca.data.sources.open.open_source", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        grr_coca("data", "stats", "a.csv")
