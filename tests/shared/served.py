"""Servers of the model that ships, with an index of the drawings that come with the code."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from serving import DRAWINGS, Client, serving

import grr_coca


@pytest.fixture(scope="session", autouse=True)
def _quick_servers() -> Iterator[None]:
    """Servers in this process do not measure which batches are best, for seconds at each start, and look five times as
    often whether they shall end. Others do as usual."""

    async def shorter_sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 5)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("grr_coca_serve.queue._best_batch", lambda model: (16, 0.01))
        patches.setattr("uvicorn.server.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": shorter_sleep}))
        yield


@pytest.fixture(scope="session")
def icons():
    """The model that ships, by itself: what a server must answer."""
    return grr_coca.load("icons")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder with the drawings, and a copy of one in another size."""
    folder = tmp_path_factory.mktemp("pictures")
    shutil.copytree(DRAWINGS, folder / "drawings")
    with Image.open(DRAWINGS / "guitar.webp") as image:
        image.convert("RGB").resize((300, 300)).save(folder / "large-guitar.png")
    return folder


@pytest.fixture(scope="session")
def index(tmp_path_factory, pictures) -> Path:
    """An index of these pictures."""
    location = tmp_path_factory.mktemp("index") / "drawings.index"
    with grr_coca.Index.open(location, "icons", create=True) as made:
        made.add(pictures)
    return location


@pytest.fixture(scope="session")
def served(index) -> Iterator[Client]:
    """A server with this index."""
    with serving(index) as client:
        yield client
