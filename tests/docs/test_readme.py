"""The README is plain in its source, and each number that was measured is that of the file it comes from."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "grr_coca"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = re.compile(r"[−+]?\d[\d.]*(?= million parameters| %)|[−+]\d[\d.]*")
PERCENT = 100


def card(*keys: str) -> float:
    """A value of the card of the model that ships."""
    value = json.loads((SRC / "model" / "weights" / "icons" / "card.json").read_text(encoding="utf-8"))
    for key in keys:
        value = value[key]
    return value


def test_each_measured_number_is_that_of_its_source() -> None:
    thin_lines = card("figures", "test_family_tabler", "text_to_image/R@10", "value")
    expected = [f"{card('parameters') / 1e6:.1f}", f"{PERCENT * thin_lines:.1f}"]
    told = re.sub(r"```.*?```|## Is it better\?.*?\n## ", "", README, flags=re.DOTALL)  # `studies/check.py` holds these
    assert MEASURED.findall(told) == [number.replace("-", "−") for number in expected]


def test_its_source_reads_as_plain_text() -> None:
    assert "<!--" not in README


@pytest.mark.parametrize(("folder", "line"), [(SRC, r"^  (\w+)/ +\S"), (ROOT, r"^(\w+)/ +\S|^(src)/")])
def test_its_layout_names_every_folder(folder: Path, line: str) -> None:
    layout = README.partition("## Layout")[2].partition("##")[0]
    named = ["".join(found) for found in re.findall(line, layout, re.MULTILINE)]
    left_out = {".", "_", "runs"}
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(tuple(left_out))]
    # A folder that is no more may still hold what Python had compiled.
    there = [path.name for path in folders if any(file.suffix != ".pyc" for file in path.rglob("*.*"))]
    assert sorted(named) == sorted(there)
