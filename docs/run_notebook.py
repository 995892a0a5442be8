"""Runs the notebook anew and keeps its outputs: `make notebook`, one to three minutes on two cores."""

import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

PAGE = Path(__file__).parent / "notebook.ipynb"
SECONDS = 1800


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run in its own folder; a cell that fails is an error."""
    notebook = nbformat.read(path, as_version=4)
    # Its cells call `grr-coca`, which lies beside the Python that runs this, in an environment that need not be active.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=SECONDS, resources=where, coalesce_streams=True).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # when each cell ran is of no interest, and differs from run to run
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def smaller(png: str) -> str:
    """A picture, in base64, with a palette of 128 colours."""
    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128).save(out, format="PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    nbformat.write(executed(PAGE), PAGE)
