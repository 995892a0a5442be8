"""`export web` without a browser: content of the folder, no private data, and errors."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from serving import SHAPES, write_icon_sets
from support import DATASETS

from grr_coca.cli import main
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.model.checkpoint_files import bundled_folder, read_files
from grr_coca_icons.site import with_others
from grr_coca_search.index import Index
from grr_coca_search.relevance import curve_of
from grr_coca_serve import site
from grr_coca_serve.npm import NpmPackage
from grr_coca_serve.page import POLICY

DRAWINGS = DATASETS.parent / "docs" / "drawings"
PHOTOS = DATASETS.parent / "tests" / "search" / "photos"


def archive(**files: bytes) -> bytes:
    """The archive of an npm package."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def json_of(path):
    """The content of a JSON file, which may be compressed."""
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """An archive in place of ONNX Runtime Web's 33 MB, which are pinned in its place."""
    content = archive(**{"ort.wasm.bundle.min.mjs": b"export {}", "ort-wasm-simd-threaded.wasm": b"\0asm"})
    path = tmp_path / "runtime.tgz"
    path.write_bytes(content)
    monkeypatch.setattr(site, "RUNTIME", NpmPackage("runtime", "1.0.0", hashlib.sha256(content).hexdigest()))
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    location = tmp_path_factory.mktemp("index") / "drawings.index"
    folder = tmp_path_factory.mktemp("whereabouts") / "drawings"
    shutil.copytree(DRAWINGS, folder)
    with Index.open(location, create=True) as made:
        made.add(folder)
    return location


def refused(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_site_has_all_files_of_its_page_and_no_local_paths(index, runtime, tmp_path):
    out = tmp_path / "site"
    assert main(["export", "web", "--index", str(index), "--out", str(out), "--runtime", str(runtime)]) == 0
    about = json.loads((out / "site.json").read_text(encoding="utf-8"))
    library = json_of(out / about["library"])
    assert about["title"] == "drawings"
    assert library["curve"] == to_dict(curve_of(bundled_folder("icons"), read_files(bundled_folder("icons")).config))
    assert about["calibration"] is not None
    assert about["count"] == library["count"] == 6
    [chunk] = library["chunks"]
    rows = json_of(out / "library" / chunk["rows"])
    assert sorted(rows["name"]) == sorted(path.name for path in DRAWINGS.iterdir())
    assert all((out / "thumbnails" / "0" / f"{row}.webp").is_file() for row in range(6))
    for path in out.rglob("*"):
        if path.suffixes[:1] in ([".json"], [".js"], [".html"]):
            text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
            assert "whereabouts" not in text, path
            assert str(tmp_path) not in text, path
    page = (out / "index.html").read_text(encoding="utf-8")
    assert POLICY in page
    assert 'data-backend="graphs"' in page
    assert "<script>" not in page
    assert "unsafe-inline" not in POLICY
    assert "'unsafe-eval'" not in POLICY


def test_scripts_name_no_other_host(site):
    for path in site.glob("*.js"):
        assert "http://" not in path.read_text(encoding="utf-8").replace("http://www.w3.org/", ""), path.name


@pytest.mark.ci
def test_site_of_icon_sets_has_no_local_folders(runtime, tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places = [tmp_path / "whereabouts" / "one" / "drawings", tmp_path / "whereabouts" / "two" / "drawings"]
    for place in places:
        place.mkdir(parents=True)
        shutil.copy(DRAWINGS / "guitar.webp", place)
    body = '<path d="M2 2h8v8h-8z"/>'
    icons = {"prefix": "tiny", "icons": {"box": {"body": body}}, "width": 12, "height": 12}
    (places[0].parent / "tiny.json").write_text(json.dumps(icons))

    def names(*sources: str) -> list[str]:
        with Index.open(tmp_path / f"{len(list(tmp_path.iterdir()))}.index", create=True) as made:
            made.add(list(sources))
            location = made.store.location
        out = tmp_path / f"site{len(list(tmp_path.iterdir()))}"
        main(["export", "web", "--index", location, "--out", str(out), "--runtime", str(runtime)])
        return sorted(json_of(out / "library" / "0000.json.gz")["name"])

    one, two = map(str, places)
    set_of_icons = str(places[0].parent / "tiny.json")
    assert names(one, set_of_icons) == ["drawings/guitar.webp", "tiny.json: box"]
    assert names(one, two) == ["one/drawings/guitar.webp", "two/drawings/guitar.webp"]
    monkeypatch.setattr("grr_coca_serve.site.os.path.commonpath", lambda folders: "/")
    assert names(one, two) == ["drawings/guitar.webp", "drawings/guitar.webp (2)"]

    def of_several_drives(folders):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("grr_coca_serve.site.os.path.commonpath", of_several_drives)
    with Index.open(max(tmp_path.glob("*.index"), key=lambda path: path.stat().st_mtime)) as made:
        shown = site._shown_names(site.read_library(made.store, None).entries)
    assert sorted(shown) == ["drawings/guitar.webp", "drawings/guitar.webp (2)"]


def test_site_of_two_icon_sets_has_equivalents(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Index.open(tmp_path / "icons.index", create=True) as made:
        made.add(write_icon_sets(tmp_path))
        library = with_others(site.read_library(made.store, None), made.model)
    rows = {str(entry.fields["icon"]): row for row, entry in enumerate(library.entries)}
    for name in SHAPES:
        ((row, probability),) = library.others[rows[f"one:{name}"]]
        assert row == rows[f"two:{name}"]
        assert 0.3 < probability <= 1


def test_images_that_are_corrupt_or_gone_have_no_thumbnail(index, tmp_path):
    damaged = tmp_path / "damaged.webp"
    damaged.write_bytes((DRAWINGS / "guitar.webp").read_bytes()[:40])
    with Index.open(index) as made:
        entries = list(site.read_library(made.store, None).entries)
    entries[1:3] = replace(entries[1], file=str(damaged)), replace(entries[2], file=str(tmp_path / "gone.webp"))
    there, _ = site._write_thumbnails(entries, tmp_path / "thumbnails", lambda *_: None)
    assert there == [True, False, False, True, True, True]
    assert {path.stem for path in (tmp_path / "thumbnails" / "0").iterdir()} == {"0", "3", "4", "5"}


@pytest.mark.ci
def test_browser_notices_another_export(index, runtime, tmp_path):
    workers = []
    for title in ("One", "Two", "One"):
        out = tmp_path / f"site{len(workers)}"
        main(["export", "web", "--index", str(index), "--out", str(out), "--runtime", str(runtime), "--title", title])
        workers.append((out / "offline.js").read_text(encoding="utf-8"))
    assert workers[0] != workers[1]
    assert workers[0] == workers[2]


def test_quantized_vectors_keep_their_directions():
    vectors = np.random.default_rng(0).standard_normal((200, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    levels, scales = site.quantized(vectors)
    back = levels * scales[:, None]
    assert levels.dtype == np.int8
    assert np.abs(np.linalg.norm(back, axis=1) - 1).max() < 1e-5
    assert ((back * vectors).sum(axis=1)).min() > 0.9998
    assert np.isfinite(site.quantized(np.zeros((1, 8), np.float32))[1]).all()


def test_runtime_must_be_the_pinned_one(tmp_path, capsys, monkeypatch):
    other = tmp_path / "other.tgz"
    other.write_bytes(archive(**{"ort.wasm.bundle.min.mjs": b"evil"}))
    message = refused(capsys, "export", "web", "--out", tmp_path / "site", "--runtime", other)
    assert "SHA-256" in message
    assert "npm pack onnxruntime-web@" in message
    assert not (tmp_path / "site").exists()
    assert "no such file" in refused(capsys, "export", "web", "--out", tmp_path / "site", "--runtime", "no.tgz").lower()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm is not installed" in refused(capsys, "export", "web", "--out", tmp_path / "site")


def test_rejects_corrupt_graphs_and_indexes_of_other_models(index, runtime, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(bundled_folder("icons"), broken)
    (broken / "text.onnx").write_bytes((broken / "text.onnx").read_bytes()[:-1])
    arguments = ("--out", tmp_path / "site", "--runtime", runtime)
    assert "text.onnx" in refused(capsys, "export", "web", "-c", broken, *arguments)
    assert "pictograms" in refused(capsys, "export", "web", "-c", "pictograms", "--index", index, *arguments)
    assert "already" in refused(capsys, "export", "web", "--out", DRAWINGS, "--runtime", runtime)
    (tmp_path / "file").touch()
    message = refused(capsys, "export", "web", "--out", tmp_path / "file" / "site", "--runtime", runtime)
    assert "file/site: cannot be written (Not a directory)" in message
    Index.open(tmp_path / "empty.index", create=True).close()
    assert "has no images" in refused(capsys, "export", "web", "--index", tmp_path / "empty.index", *arguments)
    assert not (tmp_path / "site").exists()


@pytest.mark.ci
def test_site_has_image_metadata_without_location(runtime, tmp_path):
    pytest.importorskip("defusedxml", reason="XMP needs defusedxml")
    (tmp_path / "photos").mkdir()
    for name in ("exiftool.jpg", "exiv2.jpg"):
        shutil.copy(PHOTOS / name, tmp_path / "photos")
    with Index.open(tmp_path / "photos.index", create=True) as made:
        made.add(tmp_path / "photos")
        assert next(made.store.everything())[0].photo.fields["lat"] is not None
    out = tmp_path / "site"
    main(["export", "web", "--index", str(tmp_path / "photos.index"), "--out", str(out), "--runtime", str(runtime)])
    rows, library = (json_of(out / "library" / f"{name}.json.gz") for name in ("0000", "library"))
    place = rows["name"].index("exiftool.jpg")
    assert rows["fields"]["camera"][place] == "FUJIFILM X100V"
    assert set(rows["fields"]["unfamiliar"]["of"]) <= {"yes", "no"}
    assert "zebra" in rows["words"][place].split()
    facets = {facet["field"]: facet for facet in library["facets"]}
    assert (facets["taken"]["kind"], facets["taken"]["min"]) == ("date", "2024-05-01T12:34:56")
    assert not {"lat", "lon"} & {*rows["fields"], *facets}
