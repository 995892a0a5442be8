"""An index follows its images: new, changed, moved, removed, unreadable."""

import json
import math
import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from library import ColourModel, paint
from PIL import Image
from support import real_pairs, shard_members, write_tar

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import ImageFile
from grr_coca.data.isolated import HelperLimits, helpers
from grr_coca.infer import Description
from grr_coca.infer.calibration import UNKNOWN
from grr_coca.infer.generate import Caption
from grr_coca_search.describe import FoundImage, decode_found, describe_decoded
from grr_coca_search.entry import digest_of, plain_fields
from grr_coca_search.filters import parse_filter
from grr_coca_search.update import forget_arguments, update_store


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Four images in a folder and one below it."""
    monkeypatch.chdir(tmp_path)
    for number, colour in enumerate(("red", "green", "blue")):
        paint(tmp_path / "photos" / f"{number}.png", colour, seconds=1000)
    paint(tmp_path / "photos" / "deep" / "3.png", "red", seconds=1000)
    return tmp_path / "photos"


@pytest.fixture
def model():
    return ColourModel()


@pytest.fixture
def look(store, model):
    """Update the index, and return the counts above 0."""

    def run(*arguments):
        update = update_store(store, list(map(str, arguments)), lambda: model, batch_size=2)
        counts = {name: getattr(update, name) for name in ("new", "changed", "moved", "removed", "unchanged")}
        return {name: count for name, count in counts.items() if count}

    return run


def kept(store):
    return {entry.name: entry for entry, _ in store.everything()}


def test_new_images_have_all_values_of_an_entry(store, look, photos):
    assert look("photos") == {"new": 4}
    entry = kept(store)[str(photos / "deep" / "3.png")]
    assert (entry.caption, entry.folder, entry.title) == ("a red square", "deep", "3")
    assert (entry.width, entry.height, entry.date) == (12, 12, "1970-01-01T00:16:40")
    assert entry.stamp.size == (photos / "deep" / "3.png").stat().st_size
    assert entry.is_there


def test_known_images_are_not_read_again(store, look, photos, model):
    look("photos")
    assert look("photos") == look(photos) == look("photos/") == {"unchanged": 4}
    assert model.described == 4


def test_changed_image_is_captioned_again(store, look, photos, model):
    look("photos")
    paint(photos / "0.png", "green", seconds=2000)
    assert look("photos") == {"changed": 1, "unchanged": 3}
    assert kept(store)[str(photos / "0.png")].caption == "a green square"
    assert len(store) == 4


def test_changed_time_without_new_bytes_is_ignored(store, look, photos, model):
    look("photos")
    os.utime(photos / "0.png", (3000, 3000))
    assert look("photos") == {"unchanged": 4}
    assert model.described == 4
    assert kept(store)[str(photos / "0.png")].date == "1970-01-01T00:50:00"


def test_moved_image_is_recognized_by_its_bytes(store, look, photos, model):
    look("photos")
    (photos / "0.png").rename(photos / "deep" / "renamed.png")
    assert look("photos") == {"moved": 1, "unchanged": 3}
    assert model.described == 4
    assert str(photos / "0.png") not in kept(store)
    assert kept(store)[str(photos / "deep" / "renamed.png")].caption == "a red square"


def test_image_moves_once_and_never_replaces_an_existing_one(store, look, photos):
    copy = (photos / "0.png").read_bytes()
    (photos / "copy.png").write_bytes(copy)
    look("photos")
    (photos / "0.png").unlink()
    (photos / "copy.png").rename(photos / "one.png")
    assert look("photos") == {"moved": 1, "removed": 1, "unchanged": 3}
    (photos / "one.png").rename(photos / "1.png")
    assert look("photos") == {"changed": 1, "removed": 1, "unchanged": 2}


def test_copy_is_a_separate_image_with_reused_results(store, look, photos, model):
    look("photos")
    (photos / "copy.png").write_bytes((photos / "0.png").read_bytes())
    assert look("photos") == {"new": 1, "unchanged": 4}
    assert model.described == 4


def test_deleted_image_is_removed_if_its_source_was_scanned(store, look, photos, tmp_path):
    other = paint(tmp_path / "other" / "x.png", "blue")
    look("photos", "other")
    (photos / "1.png").unlink()
    (photos / "deep" / "3.png").unlink()
    assert look(other.parent) == {"unchanged": 1}
    assert look("photos") == {"removed": 2, "unchanged": 2}
    assert len(store) == 3


def test_subfolder_belongs_to_a_scanned_folder(store, look, photos):
    paint(photos / "deep" / "4.png", "blue")
    look("photos")
    (photos / "deep" / "3.png").unlink()
    (photos / "1.png").unlink()
    assert look("photos/deep") == {"removed": 1, "unchanged": 1}
    assert len(store) == 4


def test_images_of_a_missing_folder_are_kept(store, look, photos):
    look("photos")
    photos.rename(photos.with_name("elsewhere"))
    with pytest.raises(UserError, match="photos: does not exist, but the index has images of it"):
        look("photos")
    photos.mkdir()
    with pytest.raises(UserError, match="no images in this folder"):
        look("photos")
    assert len(store) == 4


@pytest.mark.parametrize("arguments", [["photos"], ["photos/deep", "photos"], ["photos/**/*.png"]])
def test_images_in_an_unreadable_folder_are_kept(store, look, photos, lock, arguments):
    look(*arguments)
    unlock = lock(photos / "deep")
    (photos / "0.png").unlink()
    assert look(*arguments) == {"removed": 1, "unchanged": 2}
    assert str(photos / "deep" / "3.png") in kept(store)
    assert {failure.message for failure in store.failures()} <= {f"{photos}/deep: cannot be read (Permission denied)"}
    unlock()
    assert look(*arguments) == {"unchanged": 3}
    assert store.failures() == []


def test_images_of_a_shard_that_is_still_being_copied_are_kept(store, look, photos):
    shard = write_tar(photos / "some.tar", shard_members(real_pairs(3)))
    look("photos")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:3000])
    assert "removed" not in look("photos")
    assert len(store) == 7
    shard.write_bytes(whole)
    assert look("photos") == {"unchanged": 7}


@pytest.mark.parametrize(
    ("place", "count"),
    [("photos", 7), ("photos/deep", 1), ("photos/1.png", 1), ("photos/some.tar", 2), ("photos/*.png", 1), (".", 8)],
)
def test_removing_a_source_works_if_it_is_missing(store, look, photos, place, count):
    write_tar(photos / "some.tar", shard_members(real_pairs(2)))
    paint(photos.parent / "photos of us" / "4.png", "blue")
    (photos / "bad.png").write_bytes(b"no image")
    look("photos", "photos of us")
    paint(photos / "5.png", "grey")
    look("photos/*5.png")
    photos.rename(photos.with_name("away"))
    assert forget_arguments(store, [place.replace("*.", "*5.")]) == count
    assert len(store) == 8 - count
    assert bool(store.failures()) == (place not in ("photos", "."))


def test_missing_argument_is_named(look, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        look(tmp_path / "nowhere")


def test_unreadable_images_are_retried_when_changed(store, look, photos, model):
    (photos / "bad.png").write_bytes(b"no image")
    paint(photos / "0.png", "red")
    update = update_store(store, [str(photos)], lambda: model)
    assert [failure.name for failure in update.failures] == [str(photos / "bad.png")]
    assert "bad.png: not an image" in update.failures[0].message
    assert (update.found, update.new, len(store)) == (5, 4, 4)
    again = update_store(store, [str(photos)], lambda: pytest.fail("there is nothing to describe"))
    assert [failure.name for failure in again.failures] == [str(photos / "bad.png")]
    paint(photos / "bad.png", "grey")
    assert look("photos") == {"new": 1, "unchanged": 4}
    assert store.failures() == []
    (photos / "bad.png").write_bytes(b"broken now")
    look("photos")
    assert len(store) == 4, "an image that has become unreadable is not in the index"
    (photos / "bad.png").unlink()
    look("photos")
    assert store.failures() == []


def test_copies_keep_their_own_names_times_and_failures(store, photos, model):
    (photos / "0 copy.png").write_bytes((photos / "0.png").read_bytes())
    for name in ("1 bad.png", "1 bad, copy.png"):
        (photos / name).write_bytes(b"no image")
    (photos / "2 copy.png").write_bytes((photos / "2.png").read_bytes())
    update = update_store(store, [str(photos)], lambda: model)
    entries = {Path(name).name: entry for name, entry in kept(store).items()}
    assert update.new == len(entries) == 6
    for name in ("0", "2"):
        one, copy = entries[f"{name}.png"], entries[f"{name} copy.png"]
        assert copy.digest == one.digest == digest_of((photos / f"{name}.png").read_bytes())
        assert (copy.phash, copy.pixel_signature, copy.caption) == (one.phash, one.pixel_signature, one.caption)
        assert copy.stamp.mtime_ns == (photos / f"{name} copy.png").stat().st_mtime_ns != one.stamp.mtime_ns
    assert [entries[f"{number}.png"].caption for number in range(4)] == [
        f"a {colour} square" for colour in ("red", "green", "blue", "red")
    ]
    assert {failure.name for failure in update.failures} == {
        str(photos / name) for name in ("1 bad.png", "1 bad, copy.png")
    }
    assert all(failure.message.startswith(failure.name) for failure in update.failures)


def test_model_sees_equal_images_once(store, photos):
    (photos / "0 copy.png").write_bytes((photos / "0.png").read_bytes())
    seen = []

    class Model:
        has_tags = False

        def describe_many(self, squares, batch_size):
            assert batch_size == len(squares)
            seen.extend(squares)
            captions = [f"number {number}" for number in range(len(squares))]
            return [Description([Caption(text, (), ())], np.zeros(4, np.float32), (UNKNOWN,)) for text in captions]

    files = [FoundImage(ImageFile(str(photos / name)), "", None) for name in ("0.png", "1.png", "0 copy.png")]
    described = describe_decoded(Model(), list(decode_found(files, ColourModel.preprocess)))
    assert [one.caption for one in described] == ["number 0", "number 1", "number 0"]
    assert len(seen) == 2


@pytest.mark.ci
def test_image_is_retried_after_a_system_error(store, look, photos, monkeypatch):
    write_tar(photos / "some.tar", shard_members(real_pairs(1)))
    paint(photos / "0.heic.png", "red").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        for function in ("open_regular", "read_regular"):
            patched.setattr(f"grr_coca.data.image_files.{function}", refuse)
        assert look("photos") == {}
    with monkeypatch.context() as patched:
        helpers.end()  # another test may have needed it
        patched.setattr(helpers, "_modules", frozenset())
        patched.setitem(sys.modules, "pillow_heif", None)
        assert look("photos") == {"new": 5}
    (failure,) = store.failures()
    assert "needs pillow-heif" in failure.message
    assert store.known([failure.name]) == {}, "tried again"
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    Image.fromarray(noise).save(photos / "0.heic.png", compress_level=1)  # decoding takes longer than no time at all
    before = helpers.use(HelperLimits(wall_seconds=0))
    look("photos")
    helpers.use(before)
    (failure,) = store.failures()
    assert "0.heic.png: not decoded: the decoding program timed out" in failure.message
    assert store.known([failure.name]) == {}, "tried again"


def test_incompletely_written_image_is_retried(store, look, photos, monkeypatch):
    late, read = photos / "late.png", ImageFile.read
    late.write_bytes((photos / "0.png").read_bytes()[:40])

    def read_before_the_rest_arrives(self):
        content = read(self)
        if self.name == str(late):
            paint(late, "blue")
        return content

    with monkeypatch.context() as patched:
        patched.setattr(ImageFile, "read", read_before_the_rest_arrives)
        assert look("photos") == {"new": 4}
    assert [failure.name for failure in store.failures()] == [str(late)]
    assert look("photos") == {"new": 1, "unchanged": 4}
    assert store.failures() == []


def test_members_of_a_shard_are_images(store, look, tmp_path, model):
    members = shard_members(real_pairs(3))
    shard = write_tar(tmp_path / "some.tar", members)
    assert look(shard) == {"new": 3}
    assert look(shard) == {"unchanged": 3}
    entry = next(iter(kept(store).values()))
    assert entry.span.read() == members[f"{entry.title}.webp"]
    assert entry.folder == "some"
    write_tar(shard, dict(list(members.items())[:4]))
    os.utime(shard, (5000, 5000))
    assert look(shard) == {"removed": 1, "unchanged": 2}
    assert model.described == 3


def test_members_moved_within_a_shard_are_found(store, look, tmp_path):
    members = shard_members(real_pairs(3))
    names = [name for name in members if name.endswith(".webp")]
    shard = write_tar(tmp_path / "some.tar", {name: members[name] for name in names[1:]})
    look(shard)
    write_tar(shard, {name: members[name] for name in names})
    os.utime(shard, (5000, 5000))
    assert look(shard) == {"new": 1, "unchanged": 2}
    assert {Path(entry.name).name: entry.span.read() for entry in kept(store).values()} == {
        f"some.tar: {name}": members[name] for name in names
    }


def test_shard_replaced_while_reading_is_read_again(store, look, tmp_path):
    """Members of equal size lie where others were: their bytes are those of the wrong image, and nothing fails."""
    shard = tmp_path / "some.tar"

    def write(numbers, seconds):
        for number in numbers:
            Image.new("RGB", (12, 12), (number * 20, 200, 100)).save(tmp_path / f"{number}.bmp")
        members = {f"{number}.bmp": (tmp_path / f"{number}.bmp").read_bytes() for number in numbers}
        new = write_tar(tmp_path / "new", members)
        os.utime(new, (seconds, seconds))
        new.replace(shard)

    class Late(ColourModel):
        def describe(self, batches, take):
            def replaced():
                for place, batch in enumerate(batches):
                    yield batch
                    if place == 0:
                        write(range(9), 2000)

            super().describe(replaced(), take)

    write(range(1, 9), 1000)
    update_store(store, [str(shard)], Late, batch_size=1)
    look(shard)
    for entry in kept(store).values():
        content = (tmp_path / f"{entry.title}.bmp").read_bytes()
        assert (entry.digest, entry.span.read()) == (digest_of(content), content)
    assert len(store) == 9


def test_images_added_during_captioning_are_kept(store, photos, model):
    class Arriving(ColourModel):
        def read(self, found, batch_size):
            paint(photos / "late.png", "grey")
            (photos / "late-and-bad.png").write_bytes(b"no image")
            return super().read(found, batch_size)

    update = update_store(store, [str(photos)], Arriving)
    assert (update.found, update.new, update.removed, len(store)) == (6, 5, 0, 5)
    assert [failure.name for failure in update.failures] == [str(photos / "late-and-bad.png")]


def test_modification_time_in_the_far_future_is_valid(store, look, photos):
    os.utime(photos / "0.png", (10**10, 10**10))  # the year 2286, behind what 64 bits hold in nanoseconds
    assert look("photos") == {"new": 4}
    assert kept(store)[str(photos / "0.png")].date == "2262-04-11T23:47:16"
    assert look("photos") == {"unchanged": 4}


def test_failures_outside_the_sources_are_not_reported(store, look, photos, model):
    (photos / "bad.png").write_bytes(b"no image")
    (photos / "deep" / "bad.png").write_bytes(b"no image")
    look("photos")
    fine = paint(photos / "fine.png", "grey")
    assert update_store(store, [str(fine)], lambda: model).failures == []
    (failure,) = update_store(store, [str(photos / "deep")], lambda: model).failures
    assert failure.name == str(photos / "deep" / "bad.png")


def test_impossible_file_name_in_a_row_keeps_the_table(store, look, photos):
    rows = [{"image": "photos/0.png", "caption": "a"}, {"image": "\ud83d.png", "caption": "b"}]
    (photos.parent / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert look("table.jsonl") == {"new": 1}
    (failure,) = store.failures()
    assert "?.png" in failure.name


def test_member_name_with_a_colon_keeps_folder_and_title(store, look, tmp_path):
    look(write_tar(tmp_path / "some.tar", {"x/scene: night.webp": real_pairs(1)[0].image}))
    (entry,) = store.matching(parse_filter("folder = 'x' and title = 'scene: night'", frozenset()))
    assert entry.name == f"{tmp_path}/some.tar: x/scene: night.webp"


def test_shard_in_a_folder_named_like_a_shard_is_removed(store, look, tmp_path):
    folder = tmp_path / "old.tar: kept"
    folder.mkdir()
    shard = write_tar(folder / "some.tar", shard_members(real_pairs(2)))
    paint(folder / "0.png", "red")
    look(tmp_path)
    shard.rename(tmp_path / "away")
    assert forget_arguments(store, [str(shard)]) == 2
    assert forget_arguments(store, [str(folder / "0.png")]) == 1


def test_columns_of_a_table_become_fields(store, look, photos):
    (photos.parent / "table.csv").write_text(
        'path,caption,price,Brand name,code,width\nphotos/0.png,a car,12.5,Acme,007,9\nphotos/1.png,a hat,,"A, B",x,9\n'
    )
    assert look("table.csv") == {"new": 2}
    first, second = sorted(kept(store).values(), key=lambda entry: entry.name)
    assert first.fields == {
        "table_caption": "a car",
        "price": 12.5,
        "brand_name": "Acme",
        "code": "007",
        "table_width": 9,
    }
    assert second.fields["brand_name"] == "A, B"
    assert "price" not in second.fields
    assert (first.title, first.folder, first.is_there) == ("0", "photos", True)
    tree = parse_filter("price > 10 and code = '007'", store.columns())
    assert [entry.name for entry in store.matching(tree)] == [first.name]


def test_columns_in_other_scripts_keep_their_letters(store, look, photos):
    (photos.parent / "table.csv").write_text(
        "path,caption,цена,Цвет,Prix é,2 色\nphotos/0.png,a car,5,red,6,x\n", encoding="utf-8"
    )
    assert look("table.csv") == {"new": 1}
    (entry,) = kept(store).values()
    assert entry.fields == {"table_caption": "a car", "цена": 5, "цвет": "red", "prix__": 6, "table_2_色": "x"}
    for text in ("цена > 4 and ЦВЕТ = 'red'", "prix__ = 6", "table_2_色 = 'x'"):
        assert list(store.matching(parse_filter(text, store.columns()))) == [entry]


def test_edited_table_row_changes_only_fields(store, look, photos, model):
    table = photos.parent / "table.csv"
    table.write_text("path,caption,price\nphotos/0.png,a car,5\nphotos/1.png,a hat,6\n")
    look("table.csv")
    table.write_text("path,caption,price\nphotos/0.png,a car,9\nphotos/1.png,a hat,6\n")
    assert look("table.csv") == {"changed": 1, "unchanged": 1}
    assert sorted((entry.caption, entry.fields["price"]) for entry in kept(store).values()) == [
        ("a green square", 6),
        ("a red square", 9),
    ]
    assert model.described == 2
    assert look("table.csv") == {"unchanged": 2}


def test_names_that_are_not_utf8_are_kept(store, look, photos):
    odd = os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png")
    paint(photos / "4.png", "blue").rename(odd)
    assert look("photos") == {"new": 5}
    assert look("photos") == {"unchanged": 5}
    assert kept(store)[odd].is_there
    Path(odd).unlink()
    assert look("photos") == {"removed": 1, "unchanged": 4}


def test_work_before_an_interruption_is_kept(store, photos, model, monkeypatch):
    monkeypatch.setattr("grr_coca_search.update.SECONDS_BETWEEN_COMMITS", 0.0)
    read = model.read

    def interrupted(*arguments):
        for batch in read(*arguments):
            if model.described >= 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(model, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        update_store(store, [str(photos)], lambda: model, batch_size=2)
    assert len(store) == 2
    model.read = read
    assert update_store(store, [str(photos)], lambda: model).new == 2
    assert len(store) == 4


def test_wider_folder_keeps_entries_that_its_walk_skips(store, look, photos, tmp_path):
    paint(tmp_path / "far" / "5.png", "blue")
    (photos / "link").symlink_to(tmp_path / "far")
    paint(photos / ".private" / "6.png", "blue")
    paint(photos / "7.png", "blue").rename(photos / "noext")
    write_tar(photos / ".private" / "some.tar", shard_members(real_pairs(1)))
    assert look("photos") == {"new": 5}
    assert look("photos/link", "photos/.private", "photos/noext") == {"new": 3, "unchanged": 1}
    assert look("photos") == {"unchanged": 5}
    assert len(store) == 8
    (photos / "noext").unlink()
    (photos / "link").unlink()
    assert look("photos") == {"removed": 2, "unchanged": 4}


def test_wider_folder_sees_that_a_shard_has_lost_a_member(store, look, photos):
    members = shard_members(real_pairs(2))
    shard = write_tar(photos / "some.tar", members)
    look(shard)
    look("photos")
    write_tar(shard, dict(list(members.items())[:2]))
    assert look("photos")["removed"] == 1


@pytest.mark.parametrize("root", ["photos/[2020]", "photos/deep/*.png"])
def test_parent_folder_removes_missing_images_of_patterns(store, look, photos, root):
    named = paint(photos / "[2020]" / "4.png", "blue") if root.endswith("]") else photos / "deep" / "3.png"
    look(root)
    named.unlink()
    assert look("photos") == {"new": 3 + root.endswith("]"), "removed": 1}


def test_full_folder_for_temporary_files_is_named(look, photos, monkeypatch):
    connect = sqlite3.connect

    def connect_on_a_full_disk(name, **options):
        database = connect(name, **options)
        if not name:
            database.execute("PRAGMA max_page_count = 2")
        return database

    for number in range(600):
        (photos / f"bad{number}.png").touch()
    monkeypatch.setattr("sqlite3.connect", connect_on_a_full_disk)
    with pytest.raises(UserError, match=r"the temporary folder cannot be written to .*full.*SQLITE_TMPDIR"):
        look("photos")


def test_missing_image_that_was_named_is_removed(store, look, photos):
    named = [photos / "0.png", photos / "deep" / "3.png"]
    look(*named)
    named[0].unlink()
    assert look(*store.roots()) == {"removed": 1, "unchanged": 1}
    assert look(*store.roots()) == {"unchanged": 1}
    assert store.failures() == []


def test_named_images_on_an_unavailable_disk_are_kept(store, look, photos):
    look(photos / "deep" / "3.png")
    for mount_point_stays in (False, True):
        (photos / "deep").rename(photos / "away")
        if mount_point_stays:
            (photos / "deep").mkdir()
        with pytest.raises(UserError, match=r"3\.png: does not exist, but the index has images of it"):
            look(*store.roots())
        if mount_point_stays:
            (photos / "deep").rmdir()
        (photos / "away").rename(photos / "deep")
        assert look(*store.roots()) == {"unchanged": 1}


def test_naming_a_missing_image_removes_it(store, look, photos):
    look("photos")
    (photos / "0.png").unlink()
    assert look("photos/0.png") == {"removed": 1}
    with pytest.raises(UserError, match=r"0\.png: no such file or folder"):
        look("photos/0.png")


def test_image_of_the_name_of_a_pattern_is_removed(store, look, photos):
    named = paint(photos / "a[1].png", "blue")
    look(named, "photos/0.png")
    named.unlink()
    assert look(*store.roots()) == {"removed": 1, "unchanged": 1}


def test_number_that_a_database_cannot_hold_is_excluded():
    for cell in (10**400, 2**63, math.inf, math.nan):
        assert plain_fields({"serial": cell, "price": 3, "code": "9" * 400}) == {"price": 3, "code": "9" * 400}
