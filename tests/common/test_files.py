"""Files that are written as a whole."""

from unittest.mock import Mock

from grr_coca.common.files import write_whole


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
