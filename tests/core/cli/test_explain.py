"""`grr-coca explain`."""

from dataclasses import replace

from PIL import Image

from grr_coca.infer.load import load
from grr_coca.model.checkpoint import from_pretrained, save_checkpoint


def test_prints_the_caption_and_draws_its_words(grr_coca, run, image_files, tmp_path):
    out = tmp_path / "new" / "maps.png"
    result = grr_coca("explain", image_files[0], "-c", run.folder, "--out", out)
    assert result.code == 0, result.err
    assert result.out == f"caption: {load(run.folder).caption(image_files[0])}\nheat maps are in {out}\n"
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_opens_the_image_with_the_checkpoints_preprocessing(grr_coca, run, tmp_path, monkeypatch):
    checkpoint = from_pretrained(run.folder)
    as_stored = replace(checkpoint, preprocess=replace(checkpoint.preprocess, opening="as_stored"))
    save_checkpoint(as_stored, tmp_path / "as-stored")
    clear = Image.effect_noise((40, 40), 100).convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    drawn = {}
    for folder in (run.folder, tmp_path / "as-stored"):
        monkeypatch.chdir(tmp_path)
        assert grr_coca("explain", "clear.png", "-c", folder).code == 0
        with Image.open("clear-explained.png") as picture:
            drawn[folder] = picture.convert("L").crop((60, 80, 120, 140)).getextrema()  # of the image itself
    on_white, as_stored = drawn.values()
    assert on_white == (255, 255)
    assert as_stored[1] - as_stored[0] > 50
