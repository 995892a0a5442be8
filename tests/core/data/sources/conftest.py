"""A server for the files of a test's `folder`, and the pairs of its `PATTERN`, indexed."""

import pytest
from stores import FileServer, indexed, make_impatient


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    make_impatient(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache" / "grr-coca"


@pytest.fixture
def server(folder):
    with FileServer(folder) as running:
        yield running


@pytest.fixture
def source(server, request):
    """The files, indexed. What was asked for until then is forgotten."""
    opened = indexed(f"{server.url}/{request.module.PATTERN}")
    server.requests.clear()
    return opened
