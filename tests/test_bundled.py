"""The licence of everything that the wheel bundles beside our code is stated: in NOTICE, or on the card of a model."""

import json
import runpy
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "grr_coca"
NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")
RELEASE = runpy.run_path(str(ROOT / "scripts" / "check_release.py"))
OURS = RELEASE["OURS"]
WEIGHTS = SRC / "model" / "weights"


def bundled() -> list[Path]:
    files = [path for path in SRC.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in files if path.suffix not in OURS and not path.is_relative_to(WEIGHTS)]


def test_third_party_file_is_named_in_the_notice():
    assert [path.name for path in bundled() if path.relative_to(ROOT).as_posix() not in NOTICE] == []


def test_model_states_its_licence_and_its_data_licence():
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(WEIGHTS.glob("*/card.json"))]
    assert len(cards) == len([path for path in WEIGHTS.iterdir() if path.is_dir()])
    for card in cards:
        assert card["licence"].startswith("weights Apache-2.0; ")


@pytest.mark.parametrize(
    ("more", "unstated"),
    [
        ({}, []),
        ({"grr_coca/other.bin": b"x"}, ["grr_coca/other.bin"]),
        ({"grr_coca/model/weights/new/model.onnx": b"x"}, ["grr_coca/model/weights/new/model.onnx"]),
        (
            {"grr_coca/model/weights/icons/card.json": b"{}"},
            ["grr_coca/model/weights/icons/" + name for name in ("model.onnx", "card.json")],
        ),
        ({"g.dist-info/licenses/NOTICE": None}, ["the package: LICENSE or NOTICE is missing"]),
    ],
)
def test_wheel_with_a_file_of_unknown_licence_is_not_released(tmp_path, more, unstated):
    files = {
        "grr_coca/a.py": b"",
        "grr_coca_study/report/reading.md": b"",
        "grr_coca/data/clip_vocabulary.txt.gz": b"x",
        "grr_coca/model/weights/icons/model.onnx": b"x",
        "grr_coca/model/weights/icons/card.json": b'{"licence": "Apache-2.0"}',
        "g.dist-info/licenses/LICENSE": b"x",
        "g.dist-info/licenses/NOTICE": NOTICE.encode(),
        **more,
    }
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name, content in files.items():
            if content is not None:
                wheel.writestr(name, content)
    assert RELEASE["without_licence"](tmp_path / "a.whl") == unstated


def test_release_dates_the_changelog_and_the_citation_once():
    dated = runpy.run_path(str(ROOT / "scripts" / "date_changelog.py"))["dated"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog, cited = dated("# Changelog\n\n## Unreleased\n\ntext\n", citation, "9.8.7", "2030-01-02")
    assert changelog == "# Changelog\n\n## 9.8.7 - 2030-01-02\n\ntext\n"
    assert "\nversion: 9.8.7\ndate-released: 2030-01-02\n" in cited
    assert dated(changelog, cited, "9.8.7", "2031-01-02") == (changelog, cited)
    assert RELEASE["HEADING"].search(changelog)["version"] == "9.8.7"
