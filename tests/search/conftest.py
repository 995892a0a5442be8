"""Stores for the tests that every store must pass."""

import os
from pathlib import Path

import pytest
from library import HEADER, fill

from grr_coca_search.store import make_store, open_store

SERVER = os.environ.get("GRR_COCA_TEST_MILVUS")
"""A Milvus server for the tests that every store must pass; without it they run on the embedded store."""


def _location(folder: Path) -> str:
    return f"{SERVER}/test_{os.urandom(6).hex()}" if SERVER else str(folder / "index")


@pytest.fixture
def location(tmp_path):
    """Where an index may be made."""
    return _location(tmp_path)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store of 300 images for tests that change nothing, with the images and their embeddings.

    A server takes seconds to make an index.
    """
    made = make_store(_location(tmp_path_factory.mktemp("filled")), HEADER)
    yield made, *fill(made, 300)
    made.close()


@pytest.fixture
def store(location):
    """An index without images."""
    made = make_store(location, HEADER)
    yield made
    made.close()


@pytest.fixture
def reopened(location):
    """Opens what is at the location once more, as another process would."""
    opened = []

    def open_again():
        opened.append(open_store(location))
        return opened[-1]

    yield open_again
    for one in opened:
        one.close()
