"""Files that are written as a whole."""

from unittest.mock import Mock

import pytest

from grr_coca.common.files import changed_folder, read_json, verify_folder, whole_folder, write_whole


def test_a_file_that_is_written_anew_keeps_its_permissions(tmp_path):
    path = tmp_path / "private"
    path.touch(0o600)
    write_whole(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


def test_a_file_is_written_anew_on_a_drive_that_refuses_every_chmod(tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr("os.fchmod", Mock(side_effect=PermissionError))
    write_whole(tmp_path / "old", b"new")
    assert (tmp_path / "old").read_bytes() == b"new"


def test_a_folder_is_changed_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with whole_folder(folder, {"version": 2}) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_text("a")
        (partial / "b").write_text("b")
    with changed_folder(folder) as partial:
        (partial / "b").write_text("other")
        (partial / "c").write_text("c")
    verify_folder(folder)
    assert [(folder / name).read_text() for name in ("sub/a", "b", "c")] == ["a", "other", "c"]
    assert read_json(folder / "manifest.json")["version"] == 2
    with pytest.raises(FileNotFoundError), changed_folder(folder) as partial:
        (partial / "b").rename(partial / "nowhere" / "b")
    verify_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
