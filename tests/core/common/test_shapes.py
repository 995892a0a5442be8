"""Shapes of arrays are checked in tests, and cost nothing where jaxtyping is not installed."""

import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest

from grr_coca.common import shapes

SRC = Path(__file__).parents[3] / "src"
DECLARES = """
import numpy as np
from grr_coca.common.shapes import Float

def doubled(x: Float[np.ndarray, "N N"] | None):
    return x
"""


def run_with_module(code: str, folder: Path) -> str:
    """What a new process prints that finds the module `declares`."""
    (folder / "declares.py").write_text(DECLARES)
    path = [str(SRC), str(SRC.parent / "tests" / "shared"), str(folder)]
    setup = f"import sys; sys.path[:0] = {path!r}\n"
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", shapes.__all__)
def test_tests_use_the_types_that_are_checked(name):
    assert getattr(shapes, name) is getattr(jaxtyping, name)


def test_rejects_an_array_of_a_wrong_shape(tmp_path):
    code = """
import jaxtyping, numpy as np
jaxtyping.install_import_hook(["declares"], "shape_check.check")
from declares import doubled
doubled(np.zeros((2, 2), np.float32))
try:
    doubled(np.zeros((2, 3), np.float32))
except jaxtyping.TypeCheckError:
    print("refused")
"""
    assert run_with_module(code, tmp_path) == "refused"


def test_annotation_is_the_array_type_without_jaxtyping(tmp_path):
    code = "sys.modules['jaxtyping'] = None; import declares; print(declares.doubled.__annotations__['x'])"
    assert run_with_module(code, tmp_path) == "numpy.ndarray | None"
