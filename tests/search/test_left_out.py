"""Excluded files, files with several frames and missing packages, and the messages of the commands about them."""

import json
import sys

import pytest
from library import ColourModel, paint
from PIL import Image

from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.data.isolated import helpers
from grr_coca_search.update import update_store


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a", "raw/b", ".hidden/c"):
        paint(folder / f"{name}.png", "red")
    return folder


def update(store, *arguments, **options):
    return update_store(store, list(map(str, arguments)), ColourModel, **options)


def stems(store):
    return sorted(entry.title for entry, _ in store.everything())


def test_index_remembers_its_patterns(store, reopened, photos):
    assert update(store, photos).new == 2
    assert update(store, photos, exclude=["raw/"]).removed == 1
    assert stems(store) == ["a"]
    assert reopened().excluded() == ("raw/",)
    assert update(store, photos).new == 0
    assert update(store, photos, exclude=["a.*"]).new == 1
    assert stems(store) == ["b"]
    assert update(store, photos, exclude=[""]).new == 1
    assert store.excluded() == ()


def test_excluded_files_are_counted_once(store, photos):
    assert str(update(store, photos, exclude=["raw/"]).left_out) == (
        "left out: 1 hidden folder (.hidden), 1 excluded folder (raw)"
    )


def test_invalid_pattern_changes_nothing(store, photos):
    update(store, photos, exclude=["raw/"])
    with pytest.raises(UserError, match="--exclude"):
        update(store, photos, exclude=["!"])
    assert store.excluded() == ("raw/",)
    assert stems(store) == ["a"]


def animation(path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def test_images_of_several_frames_are_counted(store, photos):
    animation(photos / "d.gif")
    assert update(store, photos).first_frames == 1
    assert update(store, photos).first_frames == 0, "it was not read again"


def test_commands_report_excluded_and_moved_files(photos, tmp_path, capsys):
    animation(photos / "d.gif")
    excluded = "left out: 1 hidden folder (.hidden), 1 excluded folder (raw)\n"
    frames = "1 file has several frames or pages; only the first was used\n"
    assert main(["index", str(photos), "--out", str(tmp_path / "index"), "--exclude", "raw/"]) == 0
    shown = capsys.readouterr()
    assert excluded + frames in shown.err
    assert main(["caption", str(photos), "--exclude", "raw/", "--json"]) == 0
    shown = capsys.readouterr()
    assert excluded in shown.err
    assert frames in shown.err
    assert [json.loads(line)["image"] for line in shown.out.splitlines()] == [
        str(photos / name) for name in ("a.png", "d.gif")
    ]


@pytest.mark.ci
def test_missing_package_is_named_once(photos, tmp_path, capsys, monkeypatch):
    helpers.end()  # another test may have needed it
    monkeypatch.setattr(helpers, "_modules", frozenset())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for number in range(3):
        (photos / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for command in (["caption", str(photos)], ["index", str(photos), "--out", str(tmp_path / "index")]):
        assert main(command) == 0
        shown = capsys.readouterr()
        assert shown.err.count("pip install pillow-heif") == 1
        assert f"{photos / '0.heic'}: a HEIC file, which needs pillow-heif" in shown.err
        assert "(and 2 more)" in shown.err
