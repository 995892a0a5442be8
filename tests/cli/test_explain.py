"""`grr-coca explain`."""

import pytest
from PIL import Image

from grr_coca.inference import load
from support import snapshot


def test_the_caption_is_told_and_its_words_are_drawn(grr_coca, run, image_files, tmp_path):
    out = tmp_path / "new" / "maps.png"
    said = grr_coca("explain", image_files[0], "-c", run.folder, "--out", out)
    assert said.code == 0, said.err
    assert said.out == f"caption: {load(run.folder).caption(image_files[0])}\nheat maps are in {out}\n"
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_a_text_is_drawn_in_its_place(grr_coca, run, image_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = grr_coca("explain", image_files[0], "-c", run.folder, "--text", "red heart")
    assert said.code == 0, said.err
    cosine = load(run.folder).similarity(image_files[0], "red heart").item()
    assert f"cosine with 'red heart': {cosine:.3f}" in said.out
    assert (tmp_path / "0-explained.png").is_file()


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--out", "maps.jpg"], "maps.jpg: the suffix says the format"), (["--text", " "], "empty")],
)
def test_what_cannot_be_drawn_is_refused(refused, run, image_files, options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    assert told in refused("explain", image_files[0], "-c", run.folder, *options)
    assert snapshot(tmp_path) == before


def test_a_missing_or_bad_image_is_named(refused, run, tmp_path):
    assert "cat.png: no such file" in refused("explain", tmp_path / "cat.png", "-c", run.folder)
    (tmp_path / "page.png").write_text("<html>")
    assert "page.png: not an image" in refused("explain", tmp_path / "page.png", "-c", run.folder)
