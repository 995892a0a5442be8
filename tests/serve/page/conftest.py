"""A headless Chromium, and a site from `export web`."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import Tab, hosted, static
from icon_places import PLACES, opened_place, write_icon_index, write_icon_sites
from PIL import Image
from support import DATASETS

from grr_coca.common.files import user_cache
from grr_coca.data.sources.open import find_files
from grr_coca.model.checkpoint_files import bundled_folder
from grr_coca_search.index import Index
from grr_coca_serve.npm import NpmPackage
from grr_coca_serve.site import find_runtime, graphs_of, read_library, write_site

AXE = NpmPackage("axe-core", "4.14.1", "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a browser runs by `make test-browser`."""
    for item in items:
        if "page" in Path(item.path).parts and "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(
                pytest.mark.skipif("GRR_COCA_TEST_BROWSER" not in os.environ, reason="runs by `make test-browser`")
            )


@pytest.fixture(scope="session")
def browser():
    """Chromium. Tests fail, and are not skipped, if there is none: `make test-browser` says what is needed."""
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser) -> Iterator[Callable[..., Tab]]:
    """Open an address in a browser without history. At the end, nothing must have gone to the console."""
    tabs: list[Tab] = []

    def open_tab(*arguments: object, **context: object) -> Tab:
        tabs.append(Tab(browser, *arguments, **context))
        return tabs[-1]

    yield open_tab
    errors = [error for one in tabs for error in one.errors]
    for one in tabs:
        one.context.close()
    assert errors == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The code of axe-core, which npm fetches once."""
    path = user_cache() / "packages" / AXE.archive
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"{AXE.name}@{AXE.version}"], cwd=path.parent, check=True)
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == AXE.sha256
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture(scope="session")
def drawings(tmp_path_factory) -> Path:
    """150 drawings in two folders, one of them twice."""
    folder = tmp_path_factory.mktemp("drawings")
    [shard] = find_files(str(DATASETS / "pictograms" / "test_style-00000.tar"))[0]
    with tarfile.open(shard) as tar:
        members = [member for member in tar if member.name.endswith(".webp")]
        for number, member in enumerate(members[:900:6]):
            file = tar.extractfile(member)
            assert file is not None
            place = folder / ("people" if number < 40 else "things") / Path(member.name).name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(file.read())
    Image.open(place).convert("RGB").resize((90, 90)).save(folder / "things" / "again.png")
    return folder


@pytest.fixture(scope="session")
def photo(drawings) -> Path:
    """One of the drawings."""
    return next((drawings / "things").glob("*.webp"))


@pytest.fixture(scope="session")
def drawings_index(drawings, tmp_path_factory) -> Path:
    location = tmp_path_factory.mktemp("index") / "drawings.index"
    with Index.open(location, create=True) as index:
        index.add(drawings)
    return location


@pytest.fixture(scope="session")
def site(drawings_index, tmp_path_factory) -> Path:
    """A site of the model that ships, with the index of drawings."""
    folder = tmp_path_factory.mktemp("site") / "site"
    with Index.open(drawings_index) as index:
        library = read_library(index.store, index.model.curve)
    icons = bundled_folder("icons")
    assert icons is not None
    with graphs_of(icons) as graphs:
        write_site(graphs, folder, find_runtime(), library, title="Drawings", model="icons")
    return folder


@pytest.fixture(scope="session")
def host(site) -> Iterator[str]:
    """The address of the site."""
    with hosted(static(site)) as address:
        yield address


@pytest.fixture(scope="session")
def icon_index(tmp_path_factory) -> Path:
    """See `icon_places`."""
    return write_icon_index(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def icons(icon_index) -> Iterator[str]:
    """Address of a server with this index."""
    with opened_place("serve", icon_index, {}) as address:
        yield address


@pytest.fixture(scope="session")
def icon_sites(icon_index, tmp_path_factory) -> dict[str, Path]:
    """See `icon_places`."""
    return write_icon_sites(icon_index, tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="module", params=PLACES)
def place(request, icon_index, icon_sites) -> Iterator[str]:
    """The address of the page on a server, in an export, and in the icon site."""
    with opened_place(request.param, icon_index, icon_sites) as address:
        yield address
