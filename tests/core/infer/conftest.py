"""A small model to use, and images of it."""

from types import SimpleNamespace

import pytest
from open_clip_files import random_checkpoint
from support import real_pairs

from grr_coca.infer import ImageTextModel
from grr_coca.infer.load import load


@pytest.fixture(scope="session")
def theirs() -> SimpleNamespace:
    return random_checkpoint()


@pytest.fixture(scope="session")
def model(run) -> ImageTextModel:
    return load(run.folder, "cpu")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Image files."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{pair.key}.webp" for pair in real_pairs(5)]
    for path, pair in zip(paths, real_pairs(5), strict=True):
        path.write_bytes(pair.image)
    return paths
