"""`grr-coca import` and `export`: a checkpoint of open_clip in, used like any other, and back."""

import json

import pytest
from safetensors.torch import load_file
from support import differing, snapshot

from grr_coca_open_clip.checkpoints import SETTINGS
from grr_coca_open_clip.checkpoints.read import read_open_clip


@pytest.mark.ci
def test_import_use_and_export(grr_coca, image_files, written, tmp_path):
    result = grr_coca("import", "open_clip", str(written), "--out", str(tmp_path / "ours"))
    assert (result.code, result.err) == (0, "")
    assert "64 px, is in" in result.out
    images = [str(path) for path in image_files[:2]]
    caption = grr_coca("caption", *images, "-c", str(tmp_path / "ours"), "--max-length", "5")
    assert caption.code == 0
    assert len(caption.out.splitlines()) == 2
    classify = grr_coca("classify", *images, "-c", str(tmp_path / "ours"), "--labels", "cat,dog")
    assert classify.code == 0
    back = tmp_path / "back"
    result = grr_coca("export", "open_clip", "-c", str(tmp_path / "ours"), "--out", str(back))
    assert result.code == 0
    assert f"local-dir:{back}" in result.out
    name = "open_clip_model.safetensors"
    assert differing(load_file(back / name), load_file(written / name)) == []
    again, first = (json.loads((folder / SETTINGS).read_text()) for folder in (back, written))
    assert again["model_cfg"] == first["model_cfg"]
    assert read_open_clip(back).preprocess == read_open_clip(written).preprocess


def test_stored_pixels_on_request(grr_coca, written, tmp_path):
    result = grr_coca("import", "open_clip", str(written), "--out", str(tmp_path / "ours"), "--as-stored")
    assert result.code == 0
    assert '"opening": "as_stored"' in (tmp_path / "ours" / "preprocess.json").read_text()


def test_existing_files_are_not_overwritten(refused, written, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    assert "already exists; pass another --out" in refused("import", "open_clip", str(written), "--out", str(out))
    assert snapshot(tmp_path) == before


def test_current_folder_is_not_replaced(refused, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (".", tmp_path):
        message = refused("import", "open_clip", str(written), "--out", str(out))
        assert "the current folder cannot be replaced; pass a new folder to --out" in message
    assert snapshot(tmp_path) == {}
