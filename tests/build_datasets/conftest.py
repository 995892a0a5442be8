"""The builders of corpora, imported from their folder, with their shapes checked as those of the package are."""

import sys
from pathlib import Path

import jaxtyping
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "build_datasets"))
jaxtyping.install_import_hook(["icon_drawings"], "shape_check.check")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Builders are no part of the package: `make test-ci` and `make test-slow` run their tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ci)
            item.add_marker(pytest.mark.slow)
