"""The page frames drawings as Python does: the same squares, by `framing.js` alone, which Node.js runs too."""

import base64
import json
import shutil
import subprocess

import pytest

from grr_coca.data.framing import Framing
from grr_coca.data.images import decode_image
from grr_coca.serve.page import FILES
from picture_kinds import PICTURES, write_pictures

FRAMINGS = [
    Framing(),
    Framing(margin=0.2, tolerance=8, min_share=0.9, max_enlargement=1.5),
    Framing(margin=0.0, min_share=1, max_enlargement=9),
]

PROGRAM = """
let text = "";
for await (const part of process.stdin) text += part;
const { source, pictures, framings } = JSON.parse(text);
const { frameOf } = await import("data:text/javascript;base64," + source);
const found = pictures.map(({ width, height, rgba }) => {
  const pixels = Buffer.from(rgba, "base64");
  const rows = 3; // at a time
  function* read([left, top, right, bottom]) {
    for (let y = 0; y < bottom - top; y += rows) {
      const data = [];
      for (let row = top + y; row < Math.min(bottom, top + y + rows); row++) {
        data.push(...pixels.subarray((row * width + left) * 4, (row * width + right) * 4));
      }
      yield { y, data: Uint8ClampedArray.from(data) };
    }
  }
  return framings.map((framing) => frameOf(width, height, read, framing));
});
console.log(JSON.stringify(found));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_frames_are_those_of_python(tmp_path):
    paths = [*write_pictures(tmp_path), *(path for path in sorted(PICTURES.iterdir()) if path.suffix != ".md")]
    images = [decode_image(path.read_bytes(), path.name) for path in paths]
    given = {
        "source": base64.b64encode((FILES / "framing.js").read_bytes()).decode(),
        "pictures": [
            {
                "width": image.width,
                "height": image.height,
                "rgba": base64.b64encode(image.convert("RGBA").tobytes()).decode(),
            }
            for image in images
        ],
        "framings": [vars(framing) for framing in FRAMINGS],
    }
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", PROGRAM], input=json.dumps(given), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    framed = 0
    for path, image, found in zip(paths, images, json.loads(done.stdout), strict=True):
        for framing, square in zip(FRAMINGS, found, strict=True):
            expected = framing.frame(image)
            if expected is None:
                assert square is None, path.name
            else:
                assert square == {"box": list(expected.box), "ground": list(expected.ground)}, path.name
                framed += 1
    assert 0.1 * len(paths) < framed / len(FRAMINGS) < len(paths)
