"""Files and folders that are written as a whole, and the manifest by which damage is found."""

import errno
import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from grr_coca.common.errors import UserError
from grr_coca.common.files import (
    MANIFEST,
    atomic_folder,
    edit_folder_atomic,
    read_json,
    verify_folder,
    write_bytes_atomic,
)


@pytest.fixture
def folder(tmp_path):
    """A folder with a file in a folder, and a manifest."""
    with atomic_folder(tmp_path / "small") as partial:
        (partial / "training").mkdir()
        (partial / "training" / "w").write_bytes(b"\x00\xff weights")
    verify_folder(tmp_path / "small")
    return tmp_path / "small"


def test_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "private"
    path.touch(0o600)
    write_bytes_atomic(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


def test_replaces_a_file_on_a_drive_without_chmod(tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr("os.fchmod", Mock(side_effect=PermissionError))
    write_bytes_atomic(tmp_path / "old", b"new")
    assert (tmp_path / "old").read_bytes() == b"new"


@pytest.mark.parametrize(("refusals", "is_written"), [(2, True), (99, False)])
def test_replaces_an_open_file_once_it_is_closed(tmp_path, monkeypatch, refusals, is_written):
    """Windows does not rename a file that another process has open, such as a virus scanner."""
    (tmp_path / "old").write_bytes(b"old")
    tries, replace = [], Path.replace

    def refuse(source, target):
        tries.append(source)
        if len(tries) <= refusals:
            raise PermissionError(errno.EACCES, "in use", str(target))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr("grr_coca.common.files.time.sleep", lambda seconds: None)
    with nullcontext() if is_written else pytest.raises(PermissionError):
        write_bytes_atomic(tmp_path / "old", b"new")
    assert (tmp_path / "old").read_bytes() == (b"new" if is_written else b"old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert len(tries) == 3 if is_written else 3 < len(tries) < 20


def test_read_only_files_are_synced(tmp_path, monkeypatch):
    """Root may write to them, so the answer of the system is made here."""
    opened, synced, system_open, sync = {}, [], os.open, os.fsync

    def open_read_only(path, flags, *more, **options):
        if Path(path).name == "weights" and flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        descriptor = system_open(path, flags, *more, **options)
        opened[descriptor] = Path(path).name
        return descriptor

    with atomic_folder(tmp_path / "model") as partial:
        (partial / "weights").write_bytes(b"w")
        monkeypatch.setattr(os, "open", open_read_only)
        monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(opened.get(descriptor)), sync(descriptor)))
    monkeypatch.undo()
    assert "weights" in synced
    verify_folder(tmp_path / "model")


def test_folder_edit_is_atomic(tmp_path):
    folder = tmp_path / "model"
    with atomic_folder(folder, {"version": 2}) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_text("a")
        (partial / "b").write_text("b")
    with edit_folder_atomic(folder) as partial:
        (partial / "b").write_text("other")
        (partial / "c").write_text("c")
    verify_folder(folder)
    assert [(folder / name).read_text() for name in ("sub/a", "b", "c")] == ["a", "other", "c"]
    assert read_json(folder / "manifest.json")["version"] == 2
    with pytest.raises(FileNotFoundError), edit_folder_atomic(folder) as partial:
        (partial / "b").rename(partial / "nowhere" / "b")
    verify_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("path", [".", ".."])
def test_folder_path_without_name_raises(tmp_path, monkeypatch, path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="has no folder name"), atomic_folder(Path(path)):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


@pytest.mark.parametrize("is_there", [True, False])
def test_write_follows_a_link_to_a_folder(tmp_path, is_there):
    (tmp_path / "disk").mkdir()
    if is_there:
        (tmp_path / "disk" / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    with atomic_folder(tmp_path / "link") as partial:
        (partial / "weights").write_bytes(b"w")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "folder" / "weights").read_bytes() == b"w"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "folder", "link", MANIFEST, "weights"]


# --- Damage. Each reader of a folder has one test more, that it looks for damage at all.


def test_every_flipped_bit_is_found(folder):
    for path in (folder / "training" / "w", folder / MANIFEST):
        content = path.read_bytes()
        for bit in range(0, 8 * len(content), 3):  # in each byte, and each of eight
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(UserError, match=re.escape(str(folder))):
                verify_folder(folder)
        path.write_bytes(content)
    verify_folder(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("training/w", "training/w: missing, or cannot"), (MANIFEST, f"{MANIFEST}: missing or corrupt")],
)
def test_missing_file_is_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(UserError, match=re.escape(f"{folder}/{message}")):
        verify_folder(folder)


@pytest.mark.parametrize("name", ["/dev/zero", "../small/training/w"])
def test_manifest_lists_nothing_outside_of_its_folder(folder, name):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 0, "sha256": ""}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"lists {name}, which is outside its folder"):
        verify_folder(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        '{"files": {"a\\u0000b": {"bytes": 1, "sha256": ""}}}',
        '{"files": {"a": {"bytes": 1e999, "sha256": ""}}}',
        "[" * 100_000,
    ],
    ids=["name", "size", "depth"],
)
def test_manifest_with_impossible_entries_is_corrupt(folder, manifest):
    (folder / MANIFEST).write_text(manifest)
    with pytest.raises(UserError, match=r"manifest\.json: (missing or )?corrupt"):
        verify_folder(folder)


def test_missing_json_file_is_reported_as_missing(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json: no such file$"):
        read_json(tmp_path / MANIFEST)


def test_long_json_list_is_abbreviated_in_the_message(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps(list(range(100_000))))
    with pytest.raises(UserError, match=r"expected a mapping of keys to values, found \[0, 1, .*\.\.\.\]$") as caught:
        read_json(tmp_path / MANIFEST)
    assert len(str(caught.value)) < len(str(tmp_path)) + 200
