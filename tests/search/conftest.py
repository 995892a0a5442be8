"""Stores to run one suite of tests on."""

import os

import pytest
from library import HEADER

from grr_coca.search.locate import make_store, open_store

SERVER = os.environ.get("GRR_COCA_TEST_MILVUS")
"""A Milvus server for the tests that every store must pass; without it they run on the embedded store."""


@pytest.fixture
def location(tmp_path):
    """Where an index may be made."""
    return f"{SERVER}/test_{os.urandom(6).hex()}" if SERVER else str(tmp_path / "index")


@pytest.fixture
def store(location):
    """An index without pictures."""
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
