"""Files of captions as a Python program writes them."""

import csv
import json

import numpy as np
import pytest
from library import paint

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import ImageFile, find_images
from grr_coca.infer import Description
from grr_coca.infer.generate import Caption
from grr_coca.infer.outputs.caption_files import CaptionFile, TextFiles, XmpFiles


@pytest.fixture
def images(tmp_path) -> list[ImageFile]:
    for colour in ("blue", "green", "red"):
        paint(tmp_path / "pictures" / f"{colour}.png", colour)
    return find_images([str(tmp_path / "pictures")])


def description(text: str) -> Description:
    return Description([Caption(text, (1, 2), (-0.5, -0.25))], np.zeros(4, np.float32))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_file_of_rows_is_continued(images, tmp_path, suffix):
    path = tmp_path / f"captions{suffix}"
    with CaptionFile(path, images) as rows:
        assert rows.done == set()
        rows.write(images[0], description('a "blue"\nsquare'))
    with CaptionFile(path, images) as rows:
        assert rows.done == {images[0].name}
        with pytest.raises(UserError, match="another process is writing to this file"):
            CaptionFile(path, images)
        rows.write(images[1], description("a green square"))
    text = path.read_text()
    found = list(csv.DictReader(text.splitlines())) if suffix == ".csv" else [*map(json.loads, text.splitlines())]
    assert [(row["image"], row["caption"], float(row["log_prob"])) for row in found] == [
        (images[0].name, 'a "blue" square', -0.75),
        (images[1].name, "a green square", -0.75),
    ]


def test_captions_lie_next_to_the_images(images, tmp_path):
    with TextFiles(images) as texts, XmpFiles(images) as sidecars:
        for output in (texts, sidecars):
            output.write(images[0], description("a blue square"))
        sidecars.add_keywords(images[1], ["green"])
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir() if path.suffix != ".png") == [
        "blue.png.xmp",
        "blue.txt",
        "green.png.xmp",
    ]
    assert (tmp_path / "pictures" / "blue.txt").read_text() == "a blue square\n"
    assert XmpFiles(images).done == {images[0].name}, "keywords are no caption"
    assert TextFiles(images, overwrite=True).done == set()
