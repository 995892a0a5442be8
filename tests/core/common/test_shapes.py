"""Shapes of arrays are checked in tests, and need no jaxtyping elsewhere."""

import importlib.util
import sys

import jaxtyping
import numpy as np
import pytest

from grr_coca.common import shapes

DECLARES = """
import numpy as np
from grr_coca.common.shapes import Float

def doubled(x: Float[np.ndarray, "N N"] | None):
    return x
"""


@pytest.mark.parametrize("name", shapes.__all__)
def test_tests_use_the_types_that_are_checked(name):
    assert getattr(shapes, name) is getattr(jaxtyping, name)


def test_rejects_an_array_of_a_wrong_shape(tmp_path, monkeypatch):
    (tmp_path / "declares.py").write_text(DECLARES)
    monkeypatch.syspath_prepend(tmp_path)
    with jaxtyping.install_import_hook("declares", "shape_check.check"):
        from declares import doubled
    doubled(np.zeros((2, 2), np.float32))
    with pytest.raises(jaxtyping.TypeCheckError):
        doubled(np.zeros((2, 3), np.float32))


def test_annotation_is_the_array_type_without_jaxtyping(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxtyping", None)
    spec = importlib.util.spec_from_file_location("shapes_without_jaxtyping", shapes.__file__)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert [getattr(plain, name)[np.ndarray, "N N"] for name in shapes.__all__] == [np.ndarray] * len(shapes.__all__)
