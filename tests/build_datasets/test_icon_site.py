"""The site of icons, built from a sample of 400 icons that is laid out as the real packages are."""

import gzip
import hashlib
import io
import json
import tarfile

import icon_site
import numpy as np
import pytest
from icon_drawings import draw_icon, icon_svg
from icon_sources import LICENCES
from PIL import Image
from test_icons import SAMPLE, archives_in

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca_serve import site
from grr_coca_serve.npm import NpmPackage

pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a site of all sets in the sample, and what it says of each row."""
    folder = tmp_path_factory.mktemp("icons")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
            tar.addfile(tarfile.TarInfo(f"package/dist/{name}"), io.BytesIO())
    (folder / "runtime.tgz").write_bytes(packed.getvalue())
    patches = pytest.MonkeyPatch()
    sha256 = hashlib.sha256(packed.getvalue()).hexdigest()
    patches.setattr(site, "RUNTIME", NpmPackage("runtime", "1.0.0", sha256))
    patches.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    try:
        count = icon_site.build(folder / "site", [], folder / "runtime.tgz", lambda *_: None, archives_in(SAMPLE))
    finally:
        patches.undo()
    library = json.loads(gzip.decompress((folder / "site" / "library" / "library.json.gz").read_bytes()))
    assert library["count"] == count > 100
    [chunk] = library["chunks"]
    return folder / "site", json.loads(gzip.decompress((folder / "site" / "library" / chunk["rows"]).read_bytes()))


def values(column) -> list:
    return [column["of"][place] for place in column["at"]] if isinstance(column, dict) else column


def test_icons_have_drawing_set_and_permissive_licence(built):
    folder, rows = built
    names, captions = values(rows["name"]), values(rows["caption"])
    for name, caption, (file, place) in zip(names, captions, rows["drawing"], strict=True):
        drawing = json.loads(gzip.decompress((folder / "drawings" / f"{file}.json.gz").read_bytes()))[place]
        assert drawing["box"][2] > 0
        assert "<" in drawing["body"]
        assert all(word in name for word in caption.split()), (name, caption)
    assert set(values(rows["fields"]["licence"])) <= LICENCES
    assert {"outline", "regular"} <= set(values(rows["fields"]["style"]))
    notice = (folder / "NOTICE.txt").read_text(encoding="utf-8")
    assert all(title in notice for title in values(rows["fields"]["set"]))


def test_each_icon_has_the_embedding_of_its_drawing(built):
    folder, rows = built
    library = json.loads(gzip.decompress((folder / "library" / "library.json.gz").read_bytes()))
    content = gzip.decompress((folder / "library" / library["chunks"][0]["vectors"]).read_bytes())
    count = library["count"]
    scales, levels = np.frombuffer(content, "<f4", count), np.frombuffer(content, np.int8, offset=4 * count)
    vectors = levels.reshape(count, library["width"]) * scales[:, None]
    model = grr_coca.load(icon_site.MODEL)
    for row in (0, count // 2, count - 1):
        file, place = rows["drawing"][row]
        drawing = json.loads(gzip.decompress((folder / "drawings" / f"{file}.json.gz").read_bytes()))[place]
        box = dict(zip(("left", "top", "width", "height"), drawing["box"], strict=True))
        drawn = draw_icon(icon_svg({"body": drawing["body"]}, box))
        cosines = vectors @ model.embed_images(Image.open(io.BytesIO(drawn.webp)).convert("RGB"))
        assert cosines[row] > 0.999
        assert np.median(cosines) < 0.9


def test_set_shows_each_concept_once_and_no_logo(built):
    _, rows = built
    sets = [name.partition(":")[0] for name in values(rows["name"])]
    things = list(zip(sets, values(rows["caption"]), strict=True))
    assert len(set(things)) == len(things)
    assert not {"brand github", "logo github", "github"} & set(values(rows["caption"]))


def test_drawings_of_similar_names_are_loaded_together(built):
    _, rows = built
    by_place = sorted(zip(rows["drawing"], values(rows["caption"]), strict=True))
    captions = [caption for _, caption in by_place]
    assert captions == sorted(captions)


def test_rejects_and_keeps_a_folder_with_other_content(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    for place in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(UserError, match="contains other files; pass a new folder"):
            icon_site.build(place, [], None, lambda *_: None, archives_in(SAMPLE))
    assert (tmp_path / "mine" / "letter.txt").read_text(encoding="utf-8") == "dear"


def test_earlier_site_can_be_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setattr(icon_site, "find_runtime", lambda _: {})
    (tmp_path / "site.json").touch()
    with pytest.raises(UserError, match=r"no such set.* emojione"):  # so the folder is no obstacle
        icon_site.build(tmp_path, ["emojione"], None, lambda *_: None, archives_in(SAMPLE))
