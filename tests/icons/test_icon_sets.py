"""An index of icon sets: names, fields and aliases; pinned packages; sets that change."""

import json

import pytest
from icon_packages import put_package

from grr_coca.common.errors import UserError
from grr_coca_search.index import Index

BODIES = {
    "box": '<path d="M2 2h8v8h-8z"/>',
    "bar": '<path d="M0 0h12v4h-12z"/>',
    "dot": '<circle cx="6" cy="6" r="4"/>',
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tiny(*names: str) -> dict:
    return {
        "prefix": "tiny",
        "info": {"name": "Tiny Icons", "license": {"spdx": "MIT"}},
        "icons": {name: {"body": BODIES[name]} for name in names},
        "aliases": {"zebra": {"parent": "box"}},
        "width": 12,
        "height": 12,
    }


def put(version: str, *names: str) -> None:
    put_package(tiny(*names), version)


def entries(index: Index) -> dict:
    return {entry.name: entry for entry, _ in index.store.everything()}


def test_indexed_icon_has_its_name_and_set_metadata(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny("box", "bar")))
    with Index.open(tmp_path / "index", create=True) as index:
        assert index.add(path).new == 2
        entry = entries(index)[f"{path}: box"]
        assert (entry.title, entry.folder, entry.is_there) == ("box", "tiny", True)
        assert entry.span.read().startswith(b"<svg")
        assert entry.fields["licence"] == "MIT"
        hits = index.search("zebra", where="set = 'Tiny Icons'")
        assert hits[0].entry == entry, "an alias is a word for search"
        assert index.add(path).unchanged == 2


def test_icon_removed_from_its_file_is_removed_from_the_index(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny("box", "bar")))
    with Index.open(tmp_path / "index", create=True) as index:
        index.add(path)
        path.write_text(json.dumps(tiny("box", "dot")))
        update = index.add(path)
        assert (update.new, update.removed, len(index)) == (1, 1, 2)


def test_index_stays_with_its_package(tmp_path):
    put("1.2.3", "box", "bar")
    with Index.open(tmp_path / "index", create=True) as index:
        index.add("iconify:tiny")
        put("1.3.0", "box", "dot")
        assert index.refresh().unchanged == 2, "not the newer one"
        update = index.add("iconify:tiny@1.3.0")
        assert (update.new, update.removed, len(index)) == (1, 1, 2)
        assert {entry.fields["package"].split()[0] for entry in entries(index).values()} == {"@iconify-json/tiny@1.3.0"}
        assert index.refresh().unchanged == 2


def test_index_detects_a_replaced_package(tmp_path):
    put("1.2.3", "box", "bar")
    with Index.open(tmp_path / "index", create=True) as index:
        index.add("iconify:tiny")
        put("1.2.3", "box", "dot")
        with pytest.raises(UserError, match="not the package that was indexed"):
            index.refresh()
        assert len(index) == 2, "nothing was removed"


def test_icon_set_can_be_forgotten(tmp_path):
    put("1.2.3", "box", "bar")
    with Index.open(tmp_path / "index", create=True) as index:
        index.add("iconify:tiny")
        assert index.forget("iconify:tiny") == 2
