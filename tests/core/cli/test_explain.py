"""`grr-coca explain`."""

from dataclasses import replace

from PIL import Image

from grr_coca.infer.load import load
from grr_coca.model.checkpoint import from_pretrained, save_checkpoint


def test_prints_the_caption_and_draws_its_words(grr_coca, run, image_files, tmp_path):
    out = tmp_path / "new" / "maps.png"
    said = grr_coca("explain", image_files[0], "-c", run.folder, "--out", out)
    assert said.code == 0, said.err
    assert said.out == f"caption: {load(run.folder).caption(image_files[0])}\nheat maps are in {out}\n"
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_text_is_drawn_in_its_place(grr_coca, run, image_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = grr_coca("explain", image_files[0], "-c", run.folder, "--text", "red heart")
    assert said.code == 0, said.err
    cosine = load(run.folder).similarity(image_files[0], "red heart").item()
    assert f"cosine with 'red heart': {cosine:.3f}" in said.out
    assert (tmp_path / "0-explained.png").is_file()


def test_opens_the_image_with_the_checkpoints_preprocessing(grr_coca, run, tmp_path):
    checkpoint = from_pretrained(run.folder)
    as_stored = replace(checkpoint, preprocess=replace(checkpoint.preprocess, opening="as_stored"))
    save_checkpoint(as_stored, tmp_path / "as-stored")
    clear = Image.effect_noise((40, 40), 100).convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    said = grr_coca(
        "explain", tmp_path / "clear.png", "-c", tmp_path / "as-stored", "--text", "cat", "--out", tmp_path / "a.png"
    )
    cosine = load(tmp_path / "as-stored").similarity(tmp_path / "clear.png", "cat").item()
    assert f"cosine with 'cat': {cosine:.3f}" in said.out
    on_white = load(run.folder).similarity(tmp_path / "clear.png", "cat").item()
    assert f"{cosine:.3f}" != f"{on_white:.3f}", "or the comparison could not fail"
