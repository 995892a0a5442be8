"""What Node.js runs of the page as well: `framing.js` frames drawings as Python does, and `icon.js` writes the lines of
import that the tools for agents write.

The packages of npm have all 29,071 names of these sets.
"""

import base64
import json
import shutil
import subprocess
from typing import Any

import pytest
from picture_kinds import PICTURES, write_pictures

from grr_coca.data.isolated import decode_image
from grr_coca.data.preprocess import Framing
from grr_coca_icons.codemod.packages import usage_lines
from grr_coca_serve.page import FILES


@pytest.fixture
def in_node(tmp_path_factory):
    """A function that gives a program some JSON, and returns the JSON that it logs. It imports modules of the page."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    folder = tmp_path_factory.mktemp("node")
    shutil.copytree(FILES, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(program: str, given: object) -> Any:
        read = 'let text = ""; for await (const part of process.stdin) text += part; const given = JSON.parse(text);'
        command = ["node", "--input-type=module", "--eval", read + program]
        done = subprocess.run(command, cwd=folder, input=json.dumps(given), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


LINES = {
    ("lucide", "trash-2"): 'import { Trash2 } from "lucide-react";',
    ("tabler", "home-2"): 'import { IconHome2 } from "@tabler/icons-react";',
    ("ph", "house-bold"): 'import { HouseIcon } from "@phosphor-icons/react";',
    ("heroicons", "home"): 'import { HomeIcon } from "@heroicons/react/24/outline";',
    ("heroicons", "home-20-solid"): 'import { HomeIcon } from "@heroicons/react/20/solid";',
    ("heroicons", "squares-2x2-solid"): 'import { Squares2X2Icon } from "@heroicons/react/24/solid";',
    ("ri", "home-line"): 'import { RiHomeLine } from "@remixicon/react";',
    ("mdi", "account-box"): 'import { mdiAccountBox } from "@mdi/js";',
    ("game-icons", "castle"): None,
    ("constructor", "x"): None,
}


def test_import_lines_match_the_package_and_agent_tools(in_node):
    program = """
    const { importLine } = await import("./icon.js");
    console.log(JSON.stringify(given.map(([prefix, name]) => importLine({ prefix, name }))));
    """
    assert in_node(program, [*LINES]) == [*LINES.values()]
    for (prefix, name), line in LINES.items():
        if line is not None:
            assert usage_lines(prefix, name) == [line.replace('"', "'").rstrip(";")]


FRAMINGS = [
    Framing(),
    Framing(margin=0.2, tolerance=8, min_share=0.9, max_enlargement=1.5),
    Framing(margin=0.0, min_share=1, max_enlargement=9),
]

FRAMING = """
const { pictures, framings } = given;
const { frameOf } = await import("./framing.js");
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


@pytest.mark.ci
def test_frames_equal_those_of_python(tmp_path, in_node):
    paths = [*write_pictures(tmp_path), *(path for path in sorted(PICTURES.iterdir()) if path.suffix != ".md")]
    images = [decode_image(path.read_bytes(), path.name) for path in paths]
    given = {
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
    framed = 0
    for path, image, found in zip(paths, images, in_node(FRAMING, given), strict=True):
        for framing, square in zip(FRAMINGS, found, strict=True):
            expected = framing.frame(image)
            if expected is None:
                assert square is None, path.name
            else:
                assert square == {"box": list(expected.box), "ground": list(expected.ground)}, path.name
                framed += 1
    assert 0.1 * len(paths) < framed / len(FRAMINGS) < len(paths)
