"""The README is plain in its source, and each number that was measured is that of the file it comes from."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import grr_coca

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "grr_coca"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = re.compile(r"[−+]?\d[\d.]*(?= million parameters| %)|[−+]\d[\d.]*")
PERCENT = 100


def card(*keys: str) -> Any:
    """A value of the card of the model that ships."""
    value = json.loads((SRC / "model" / "weights" / "icons" / "card.json").read_text(encoding="utf-8"))
    for key in keys:
        value = value[key]
    return value


def test_each_measured_number_equals_its_source():
    thin_lines, emoji = (card("figures", split) for split in ("test_family_tabler", "test_style"))
    shares = [
        thin_lines["exact_captions"]["value"],
        emoji["exact_captions"]["value"],
        thin_lines["text_to_image/R@10"]["value"],
    ]
    expected = [f"{card('parameters') / 1e6:.1f}", *(f"{PERCENT * share:.1f}" for share in shares)]
    text = re.sub(r"```.*?```|## Is it better\?.*?\n## ", "", README, flags=re.DOTALL)  # `studies/check.py` holds these
    assert MEASURED.findall(text) == [number.replace("-", "−") for number in expected]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("given", "indexed", "name"),
    [
        (None, ["docs/drawings", "datasets/pictograms/test_style-00000.tar"], "drawings.index"),
        ("a b/my-icons", ["a", "b/my-icons"], "a.index"),
        ("'an own dir/' b", ["an own dir/", "b"], "an own dir.index"),
        ("{tmp}/own dir", ["{tmp}/own dir"], "own dir.index"),
    ],
)
def test_page_is_of_the_images_that_are_given(given, indexed, name, tmp_path):
    """Its title is the name of the index."""
    (tmp_path / "own dir").mkdir()
    (tmp_path / ".page").touch()
    program = tmp_path / "grr-coca"
    program.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\necho\n")
    program.chmod(0o755)
    values = [f"BIN={tmp_path}", f"VENV={tmp_path}", "PORT=8123"]
    values += [] if given is None else ["IMAGES=" + given.replace("{tmp}", str(tmp_path))]
    command = ["make", "--no-print-directory", f"--old-file={tmp_path}/.page", "page", *values]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    index, serve = (line.split("|")[:-1] for line in done.stdout.splitlines())
    *images, _, location = index[1:]
    assert images == [path.replace("{tmp}", str(tmp_path)) for path in indexed]
    assert serve == ["serve", location, "--port", "8123", "--open"]
    assert Path(location).name == name


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_try_names_the_drawings_whose_captions_are_wrong():
    drawings = sorted((ROOT / "docs" / "drawings").iterdir())
    captions = grr_coca.load("icons").caption(drawings)
    wrong = {
        path.name for path, caption in zip(drawings, captions, strict=True) if caption != path.stem.replace("-", " ")
    }
    command = ["make", "--dry-run", "--no-print-directory", "try"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"([\w-]+\.webp) is a failure", text)) == wrong
    assert 0 < len(wrong) <= len(drawings) / 4


def test_its_source_reads_as_plain_text():
    assert "<!--" not in README


@pytest.mark.parametrize(
    ("folder", "line"), [(SRC, r"^    (\w+)/ +\S"), (SRC.parent, r"^  (\w+)/ +\S"), (ROOT, r"^(\w+)/ +\S|^(src)/")]
)
def test_its_layout_names_every_folder(folder, line):
    layout = README.partition("## Layout")[2].partition("##")[0]
    named = ["".join(found) for found in re.findall(line, layout, re.MULTILINE)]
    left_out = {".", "_", "runs"}
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(tuple(left_out))]
    # A folder that is no more may still hold what Python had compiled.
    there = [path.name for path in folders if any(file.suffix != ".pyc" for file in path.rglob("*.*"))]
    assert sorted(named) == sorted(there)
