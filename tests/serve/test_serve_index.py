"""The index of a server: search and browsing while it grows, is replaced or is deleted."""

import base64
import http.client
import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from serving import DRAWINGS, JSON, OPTIONS, SHAPES, serving, wait_until, write_icon_sets

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST
from grr_coca.data.image_files import ByteRange
from grr_coca.data.isolated import decode_image
from grr_coca.model.checkpoint_files import RELEVANCE, bundled_folder
from grr_coca_search.embedded.embedded_store import EmbeddedStore
from grr_coca_search.index import IndexModel
from grr_coca_search.store import facets
from grr_coca_serve.files import PictureFiles
from grr_coca_serve.guard import Limits
from grr_coca_serve.served_index import ServedIndex, picture_id
from grr_coca_serve.server import RunningServer
from grr_coca_serve.site import _write_thumbnails


def names(answer) -> list[str]:
    found = answer.json()
    return [Path(one["name"]).stem for one in found.get("hits", found.get("pictures", []))]


def test_hits_equal_those_of_the_index(served, index):
    with grr_coca.Index.open(index) as opened:
        expected = opened.search("red fruit", 3)
    found = served.post("/search", {"texts": ["red fruit"], "limit": 3}).json()
    assert [one["name"] for one in found["hits"]] == [hit.path for hit in expected]
    assert [one["score"] for one in found["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-4)
    assert [one["relevance"] for one in found["hits"]] == pytest.approx([hit.relevance for hit in expected], abs=1e-3)
    assert (found["searched"], found["more"]) == (7, True)
    assert (found["verdict"], found["can_tell"]) == (expected.verdict, expected.can_tell)


def test_pages_of_hits_are_the_hits_in_order(served):
    whole = served.post("/search", {"texts": ["a boat"]}).json()
    pages = [served.post("/search", {"texts": ["a boat"], "offset": n, "limit": 2}).json() for n in (0, 2, 4)]
    assert [hit for page in pages for hit in page["hits"]] == whole["hits"]
    assert [page["more"] for page in pages] == [True, True, False]
    assert len({page["verdict"] for page in pages}) == 1
    assert served.post("/search", {"texts": ["a boat"], "offset": 900}).json()["hits"] == []


@pytest.mark.ci
def test_page_after_the_last_hit_has_the_same_summary(tmp_path, pictures):
    location = tmp_path / "few.index"
    with grr_coca.Index.open(location, "icons", create=True) as index:
        index.add(sorted((pictures / "drawings").glob("*.webp"))[:2])
    with serving(location) as client:
        first, behind = (client.post("/search", {"texts": ["a boat"], "offset": n}).json() for n in (0, 2))
    assert (len(first["hits"]), behind["hits"]) == (2, [])
    assert first["can_tell"] is behind["can_tell"] is False


def test_facets_are_counted_soon_after_the_system_starts(index, monkeypatch):
    monkeypatch.setattr("grr_coca_serve.served_index.time", SimpleNamespace(monotonic=lambda: 3.0))
    files = PictureFiles(None)
    opened = ServedIndex(str(index), IndexModel("icons"), None, files, curve=None)
    assert opened.facets()
    opened.close()


def test_thumbnails_have_the_colours_of_the_profile(tmp_path):
    with Image.open(Path(__file__).parents[1] / "core" / "data" / "pictures" / "darktable-display-p3.jpg") as photo:
        profile = photo.info["icc_profile"]
    path = tmp_path / "p3.png"
    Image.new("RGB", (80, 80), (60, 150, 90)).save(path, icc_profile=profile)
    shown = decode_image(path.read_bytes(), "p3.png", to_srgb=True).getpixel((9, 9))
    entry = SimpleNamespace(
        name="p3.png", span=ByteRange(path), file=str(path), offset=None, is_there=True, is_vector=False
    )
    _write_thumbnails([entry], tmp_path / "site", lambda *_: None)
    for thumbnail in (
        PictureFiles(None)._thumbnail(entry, 64),
        (tmp_path / "site" / "0" / "0.webp").read_bytes(),
    ):
        with Image.open(io.BytesIO(thumbnail)) as image:
            assert image.convert("RGB").getpixel((9, 9)) == pytest.approx(shown, abs=4)
    assert max(abs(a - b) for a, b in zip(shown, (60, 150, 90), strict=True)) > 10


def test_only_icons_have_equivalents_in_other_sets(served):
    (hit, *_) = served.post("/search", {"texts": ["guitar"]}).json()["hits"]
    assert served.get(f"/picture/{hit['id']}/others").json() == {"others": []}
    assert served.get(f"/picture/{'0' * 16}/others").status == 404


@pytest.mark.ci
def test_icon_has_equivalents_in_the_other_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (30, 30), "red").save(tmp_path / "red.png")
    with grr_coca.Index.open(tmp_path / "x.index", "icons", create=True) as made:
        made.add([*write_icon_sets(tmp_path), tmp_path / "red.png"])
    with serving(tmp_path / "x.index") as client:
        ids = {one["name"].rpartition("/")[2]: one["id"] for one in client.get("/pictures").json()["pictures"]}
        for name in SHAPES:
            (found,) = client.get(f"/picture/{ids[f'one.json: {name}']}/others").json()["others"]
            assert found["name"].endswith(f"two.json: {name}")
            assert 0.3 < found["probability"] <= 1
        assert client.get(f"/picture/{ids['red.png']}/others").json() == {"others": []}


def test_image_with_words_is_searched_only_by_embedding(served, icons):
    picture = f"data:image/webp;base64,{base64.b64encode((DRAWINGS / 'guitar.webp').read_bytes()).decode()}"
    by_both = served.post("/search", {"texts": ["red apple"], "image": picture, "weights": [0.01]}).json()["hits"]
    assert "guitar" in by_both[0]["name"]


def test_image_removed_between_reads_is_temporarily_503(served, monkeypatch):
    with monkeypatch.context() as patches:
        patches.setattr("grr_coca_serve.served_index.ServedIndex.entry", lambda *_: {}["gone"])
        patches.setattr("grr_coca_search.embedded.embedded_store.EmbeddedStore.entries", lambda *_: {}["gone"])
        answer = served.get("/pictures")
    assert (answer.status, answer.headers.get("retry-after")) == (503, "1")
    assert "the index changed during this request; try again" in answer.reason()
    assert served.get("/pictures").status == 200


def test_near_duplicates_are_one_hit_and_a_group(served, monkeypatch):
    (hit, *_) = served.post("/search", {"texts": ["guitar"]}).json()["hits"]
    found = {Path(one["name"]).stem for one in (hit, *hit["copies"])}
    assert found == {"guitar", "large-guitar"}
    groups = served.get("/duplicates").json()
    assert (groups["total"], groups["sizes"]) == (1, [2])
    assert [Path(one["name"]).stem for one in groups["groups"][0]] == ["large-guitar", "guitar"]
    assert served.get("/duplicates?offset=1").json() == {"total": 1, "sizes": [], "groups": []}
    monkeypatch.setattr("grr_coca_serve.served_index._MAX_OF_GROUP", 1)
    large = served.get("/duplicates").json()
    assert (large["sizes"], large["groups"]) == ([2], [groups["groups"][0][:1]])


def test_searches_do_not_wait_for_facets_and_lists(index, monkeypatch):
    may_end = threading.Event()

    def slow(work):
        def wait(*arguments):
            assert may_end.wait(100)
            return work(*arguments)

        return wait

    monkeypatch.setattr("grr_coca_serve.served_index.facets", slow(facets))
    monkeypatch.setattr(EmbeddedStore, "newest_first", slow(EmbeddedStore.newest_first))
    with serving(index) as client, ThreadPoolExecutor(12) as pool:
        (hit,) = client.post("/search", {"texts": ["guitar"], "limit": 1}).json()["hits"]
        asked = [pool.submit(client.get, path) for path in ("/facets", "/pictures") for _ in range(6)]
        try:
            wait_until(lambda: client.server._guard.in_flight == 12)
            for path in (f"/image/{hit['id']}", "/info", "/ready"):
                assert client.get(path).status == 200, path
            assert client.post("/search", {"texts": ["red fruit"]}).status == 200
            assert not any(future.done() for future in asked)
        finally:
            may_end.set()
        assert [future.result().status for future in asked] == [200] * 12


@pytest.mark.ci
def test_stop_does_not_wait_until_duplicates_are_found(index, monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr("grr_coca_serve.served_index.duplicate_groups", lambda store: [] if may_end.wait(100) else None)
    try:
        with serving(index, limits=Limits(seconds=0.3)) as client:
            assert client.get("/duplicates").status == 504
    finally:
        may_end.set()


def test_corrupt_relevance_curve_raises_at_the_start(index, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder("icons"), folder)
    (folder / MANIFEST).unlink()
    (folder / RELEVANCE).write_text("{")
    with pytest.raises(UserError, match=RELEVANCE):
        RunningServer(replace(OPTIONS, index=str(index), model=str(folder)), print)


def test_images_are_searched_by_and_without_other_images(served):
    pictures = {Path(one["name"]).stem: one["id"] for one in served.get("/pictures").json()["pictures"]}
    assert names(served.post("/search", {"like": [pictures["snowman"]]}))[0] == "snowman"
    for answer in (
        served.post("/similar", (DRAWINGS / "snowman.webp").read_bytes()),
        served.ask("POST", f"/similar?id={pictures['snowman']}&limit=1"),
    ):
        assert names(answer)[0] == "snowman"
        assert answer.json()["can_tell"] is False, "relevance was fitted to texts"
        assert answer.json()["hits"][0]["relevance"] is None
    with_it, without_it = (
        served.post("/search", {"texts": ["fruit"], **changes}).json()["hits"]
        for changes in ({}, {"unlike": [pictures["red-apple"]]})
    )
    scores = [{one["id"]: one["score"] for one in hits}[pictures["red-apple"]] for hits in (with_it, without_it)]
    assert scores[1] < scores[0]
    assert names(served.post("/search", {"texts": ["red apple"], "without": ["fruit"], "weights": [2]}))


def test_filters_select_hits_and_images(served):
    assert names(served.post("/search", {"texts": ["guitar"], "where": "width > 64"})) == ["large-guitar"]
    assert names(served.get("/pictures?where=width+%3E+64")) == ["large-guitar"]
    assert served.get("/pictures?where=width+%3E+640").json() == {"total": 0, "pictures": []}
    facets = {one["field"]: one for one in served.get("/facets").json()["facets"]}
    assert facets["folder"]["values"] == [["drawings", 6], [next(iter(facets["folder"]["values"][1:]))[0], 1]]
    assert (facets["width"]["min"], facets["width"]["max"]) == (64, 300)
    assert facets["date"]["min"] <= facets["date"]["max"]


# --- Pictures


def test_thumbnails_exist_only_for_indexed_images(served):
    large = served.post("/search", {"texts": ["guitar"], "where": "width > 64"}).json()["hits"][0]["id"]
    answer = served.get(f"/image/{large}?side=100")
    with Image.open(io.BytesIO(answer.body)) as image:
        assert (image.format, image.size) == ("WEBP", (100, 100))
    assert answer.headers["cache-control"] == "private, max-age=86400"
    assert served.get(f"/image/{large}?side=5").status == 422
    other = picture_id("/etc/passwd")
    for identity in (other, "..", "%2e%2e%2fetc%2fpasswd", "..%2f..%2fetc%2fpasswd", "0", "%C3%A9", "a" * 5000):
        answer = served.get(f"/image/{identity}")
        assert answer.status == 404, identity
        assert answer.reason()
    for path in (f"/image/{'f' * 16}", f"/similar?id={'f' * 16}"):
        assert served.ask("GET" if "image" in path else "POST", path).status == 404, "no id is so large"


@pytest.fixture
def own(tmp_path) -> tuple[Path, Path]:
    """A folder of pictures and its index, to change while they are served."""
    folder = tmp_path / "pictures"
    shutil.copytree(DRAWINGS, folder)
    location = tmp_path / "own.index"
    with grr_coca.Index.open(location, "icons", create=True) as made:
        made.add(folder)
    return folder, location


def test_growing_index_shows_new_images_without_restart(own):
    folder, location = own
    with serving(location) as client:
        before = client.get("/info").json()
        assert before["title"] == "own"
        assert names(client.post("/search", {"texts": ["heart"], "limit": 100})).count("heart") == 0
        client.get("/pictures"), client.get("/facets"), client.get("/duplicates")
        heart = Image.new("RGB", (64, 64), "red")
        heart.save(folder / "heart.png")
        shutil.copy(folder / "guitar.webp", folder / "again.webp")
        with grr_coca.Index.open(location) as writing:
            writing.add(folder)
            after = client.get("/info").json()  # while the writer holds its lock
        assert (before["pictures"], after["pictures"]) == (6, 8)
        assert before["revision"] != after["revision"]
        assert "heart" in names(client.post("/search", {"texts": ["heart"], "limit": 100}))
        assert client.get("/pictures").json()["total"] == 8
        assert client.get("/duplicates").json()["total"] == 1


@pytest.mark.ci
def test_deleted_image_is_a_placeholder(own):
    folder, location = own
    with serving(location) as client:
        found = {Path(one["name"]).stem: one["id"] for one in client.get("/pictures").json()["pictures"]}
        (folder / "snowman.webp").unlink()
        (folder / "guitar.webp").write_bytes(b"no picture any more")
        for name in ("snowman", "guitar"):
            answer = client.get(f"/image/{found[name]}")
            assert answer.status == 200
            assert answer.headers["x-missing"] == "1"
            assert answer.headers["content-type"] == "image/svg+xml"
            assert client.ask("POST", f"/explain?id={found[name]}").status in (415, 422)
        (hit,) = client.post("/search", {"texts": ["snowman"], "limit": 1}).json()["hits"]
        assert (Path(hit["name"]).stem, hit["is_there"]) == ("snowman", False)
        assert client.ask("POST", f"/similar?id={found['snowman']}").status == 200


@pytest.mark.ci
def test_deleted_index_is_503_until_it_exists_again(own):
    folder, location = own
    with serving(location) as client:
        assert client.get("/pictures").json()["total"] == 6
        away = location.with_name("away.index")
        location.rename(away)
        for answer in (client.get("/pictures"), client.post("/search", {"texts": ["a"]}), client.get("/info")):
            assert answer.status == 503
            assert "the index is unavailable" in answer.reason()
            assert answer.headers["retry-after"] == "5"
        assert client.get("/ready").status == 503
        assert client.get("/health").status == 200
        assert client.post("/caption", (DRAWINGS / "guitar.webp").read_bytes()).status == 200
        (folder / "guitar.webp").unlink()
        with grr_coca.Index.open(location, "icons", create=True) as made:
            made.add(folder)
        assert client.get("/pictures").json()["total"] == 5, "another index at the same place"
        assert client.get("/ready").status == 200


def test_rejects_an_index_of_another_model_at_any_time(own):
    folder, location = own
    with pytest.raises(UserError, match="an index of the model 'icons'"):
        RunningServer(replace(OPTIONS, index=str(location), model="pictograms"), print)
    with serving(location) as client:
        shutil.rmtree(location)
        with grr_coca.Index.open(location, "pictograms", create=True) as made:
            made.add(folder / "guitar.webp")
        answer = client.post("/search", {"texts": ["a"]})
        assert answer.status == 503
        assert "'pictograms'" in answer.reason()


def test_index_that_is_corrupt_while_served_is_503(own):
    _, location = own
    with serving(location) as client:
        for path in location.iterdir():
            path.write_bytes(b"\xff" * 5000)
        answer = client.get("/pictures")
        assert answer.status == 503, answer.body
        assert "index" in answer.reason()


def test_empty_index_has_no_hits(tmp_path):
    location = tmp_path / "empty.index"
    grr_coca.Index.open(location, "icons", create=True).close()
    with serving(location) as client:
        assert client.get("/pictures").json() == {"total": 0, "pictures": []}
        assert client.get("/facets").json() == {"facets": []}
        assert client.get("/duplicates").json() == {"total": 0, "sizes": [], "groups": []}
        found = client.post("/search", {"texts": ["cat"]})
        assert found.status == 200, found.body
        assert (found.json()["hits"], found.json()["searched"]) == ([], 0)


@pytest.mark.ci
def test_columns_of_a_table_can_be_filtered_by(tmp_path):
    shutil.copytree(DRAWINGS, tmp_path / "drawings")
    rows = [
        {
            "image": f"drawings/{path.name}",
            "caption": "x",
            "Artist": "Ann" if n % 2 else "Ben",
            "Year": 1990 + n,
            "code": f"c{n}",
        }
        for n, path in enumerate(sorted((tmp_path / "drawings").iterdir()))
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    location = tmp_path / "table.index"
    with grr_coca.Index.open(location, "icons", create=True) as made:
        made.add(tmp_path / "table.jsonl")
    with serving(location) as client:
        facets = {one["field"]: one for one in client.get("/facets").json()["facets"]}
        assert facets["artist"] == {"field": "artist", "kind": "text", "values": [["Ann", 3], ["Ben", 3]]}
        assert facets["year"] == {"field": "year", "kind": "number", "min": 1990, "max": 1995}
        assert "code" not in facets, "all values differ"
        narrowed = client.get("/facets?where=year+%3E+1991&field=artist&field=code").json()["facets"]
        assert {one["field"]: dict(one["values"]) for one in narrowed} == {
            "artist": {"Ann": 2, "Ben": 2},
            "code": {f"c{n}": 1 for n in range(2, 6)},
        }
        assert "did you mean 'artist'?" in client.get("/facets?where=year+%3E+1991&field=artst").reason()
        answer = client.post("/search", {"texts": ["a"], "where": "year > 1991"}).json()
        assert answer["counted"] == 4
        counted = {one["field"]: dict(one["values"]) for one in answer["facets"]}
        assert counted["artist"] == {"Ann": 2, "Ben": 2}
        found = client.post("/search", {"texts": ["a"], "where": "artist = 'Ann' and year > 1992"}).json()["hits"]
        assert {one["fields"]["year"] for one in found} == {1993, 1995}


def test_connection_is_kept_for_the_next_request(served):
    connection = http.client.HTTPConnection(*served.place, timeout=20)
    for _ in range(3):
        connection.request("POST", "/search", json.dumps({"texts": ["a"]}), JSON)
        assert connection.getresponse().read()
    connection.close()
