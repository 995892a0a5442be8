"""The Python code of pages runs on files with the names used there, and returns the stated results.

Other tests run the code of the README, "How it works", "Training" and "Adding". The code of "open_clip" needs weights
or another package.
"""

import ast
import re
from pathlib import Path

import pytest
from support import real_pairs, write_shard

import grr_coca

ROOT = Path(__file__).parents[2]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RESULT = re.compile(r"  # ('[^']*')$")
PAGES = ("index", "caption-and-search", "searching", "match")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files that the pages use: drawings, a folder of drawings, and indexes of two sets."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "drawings").symlink_to(ROOT / "docs" / "drawings")
    heart = next(pair for pair in real_pairs(200, split="test_style") if pair.caption == "growing heart")
    others = real_pairs(20, split="test_style")
    images = {"drawing": heart, "a": others[0], "b": others[1], "c": heart, "bicycle": others[3]}
    for name, pair in images.items():
        (tmp_path / f"{name}.png").write_bytes(pair.image)
    write_shard(tmp_path / "drawings" / "some.tar", others)
    for name in ("lucide", "tabler"):
        with grr_coca.Index.open(tmp_path / f"{name}.index", create=True) as index:
            index.add(ROOT / "docs" / "drawings")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, page: str) -> list[str]:
    """Run blocks as one program, and compare the lines that state a result. Returns these lines."""
    names: dict[str, object] = {}
    lines, compared = code.splitlines(), []
    for statement in ast.parse(code).body:
        result = RESULT.search(lines[statement.end_lineno - 1])
        text = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
        if isinstance(statement, ast.Expr) and result:
            assert eval(text, names) == ast.literal_eval(result[1]), text
            compared.append(text)
        else:
            exec(compile(text, page, "exec"), names)
    return compared


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs_with_the_stated_results(folder, capsys, page):
    blocks = PYTHON.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    assert blocks
    compared = run("\n".join(blocks), page)
    out = capsys.readouterr().out.splitlines()
    if page == "caption-and-search":
        assert len(compared) == 1
        assert out == ["['c.png', 'b.png', 'a.png']"] or out == ["['c.png', 'a.png', 'b.png']"]
    if page == "searching":
        assert out[-1] == "20"
    if page == "match":
        assert len(out) == 6
        assert all(Path(line.split()[0]).stem for line in out)


def test_no_page_with_python_is_without_a_test():
    with_python = {
        path.stem for path in (ROOT / "docs").glob("*.md") if PYTHON.search(path.read_text(encoding="utf-8"))
    }
    elsewhere = {"how-it-works", "training", "adding", "adding-a-part", "open-clip"}
    assert with_python == {*PAGES, *elsewhere}
