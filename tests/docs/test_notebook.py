"""The notebook runs from its first cell to its last."""

import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOK = DOCS / "notebook.ipynb"


@pytest.mark.slow
def test_notebook_runs(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from run_notebook import executed

    output = json.dumps(executed(NOTEBOOK))
    assert "captions are exactly right" in output
    assert "48 pictures are new, 0 the second time" in output
    assert "image/png" in output


def test_notebook_is_kept_with_small_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert NOTEBOOK.stat().st_size < 300_000
