"""The program in the README.md of exported graphs sees what the package sees."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from picture_kinds import PICTURES, write_pictures
from PIL import Image, ImageOps

from grr_coca.data.preprocess import Framing, Preprocess
from grr_coca.infer.export.readme import render_readme
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import bundled_folder


def pixels_of_the_program(page: str, path: Path) -> np.ndarray:
    """The input of the image graph, by the program alone."""
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    opening = program[program.index("picture = ") : program.index("embedding, ")]
    names = {
        "sys": SimpleNamespace(argv=["", io.BytesIO(path.read_bytes())]),
        "np": np,
        "Image": Image,
        "ImageOps": ImageOps,
    }
    if "import math\n" in program:
        names["math"] = math
    exec(opening, names)
    return np.asarray(names["picture"])


@pytest.fixture(scope="module")
def shipped():
    return from_pretrained(bundled_folder("icons"))


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of Pillow, in the program
@pytest.mark.parametrize(
    ("opening", "order", "framing"),
    [
        ("upright_on_white", "crop_then_resize", Framing()),
        ("upright_on_white", "resize_then_crop", Framing(margin=0.2, tolerance=8, min_share=0.9, max_enlargement=1.5)),
        ("as_stored", "resize_then_crop", None),
    ],
)
def test_program_sees_the_same_pixels(shipped, tmp_path, framing, opening, order):
    preprocess = Preprocess(64, framing=framing, opening=opening, order=order)
    page = render_readme(replace(shipped, preprocess=preprocess), "fp32")
    # Colour profiles and floating-point pixels are beyond a short program.
    others = re.compile(r"profile|adobe|display-p3|32bit|heic$|md$")
    paths = [*write_pictures(tmp_path), *(path for path in sorted(PICTURES.iterdir()) if not others.search(path.name))]
    for path in paths:
        expected = preprocess(preprocess.decode(path.read_bytes(), path.name))
        np.testing.assert_array_equal(pixels_of_the_program(page, path), expected, path.name)
