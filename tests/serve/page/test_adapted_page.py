"""The page of an adapted model: words and vectors are those of Python, served and exported."""

import base64
import gzip
import json

import numpy as np
import pytest
from adapted import unseen_pairs, write_adapted
from browsing import hosted, static
from serving import serving
from test_page_in_node import in_node
from test_page_parity import random_texts

from grr_coca import load
from grr_coca.cli import main
from grr_coca.infer.adapted.words import RULES, UNSPACED, split_words
from grr_coca_search.index import Index
from grr_coca_serve import site
from grr_coca_serve.site import find_runtime, read_library, write_site

__all__ = ["in_node"]

ODD = [
    *("", "ﬁne ＡＢＣ １２３", "北京大学 is 東京", "สวัสดี ชาวโลก", "カタカナとひらがな", "Ⅷ ½ ²", "a\u0301b  a_b"),
    *("İI ıi ΌΣΟΣ ς", "𝕬𝖇 𠀀𠀁", "don't e-mail x×y"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    write_adapted(folder)
    return folder


@pytest.mark.ci
def test_words_equal_those_of_python(in_node):
    texts = [*ODD, *random_texts(400)]
    program = """
        const { wordsOf } = await import("./adapted.js");
        console.log(JSON.stringify(given.texts.map((text) => wordsOf(text, given.unspaced))));
    """
    found = in_node(program, {"texts": texts, "unspaced": UNSPACED})
    assert found == [split_words(text) for text in texts]
    assert found[2][:8] == ["北", "京", "大", "学", "北京", "京大", "大学", "is"]


def test_vectors_equal_those_of_python(in_node, place, tmp_path, monkeypatch):
    model = load(place / "mine")
    (tmp_path / "model").mkdir()
    files = site._write_adapted(place / "mine", tmp_path)
    about, arrays = (gzip.decompress((tmp_path / files[name]).read_bytes()) for name in ("about", "arrays"))
    texts = ["greek capital letter alpha", "petit chat", "Arrow, arrow!", "猫"]
    embeddings = load("icons", engine="onnx").embed_texts(texts)
    images, _ = unseen_pairs(place)
    picture = load("icons", engine="onnx").embed_images(images[0])
    program = """
        const { Adapted } = await import("./adapted.js");
        const model = new Adapted(given.about, Uint8Array.from(Buffer.from(given.arrays, "base64")));
        const rows = given.embeddings.map((row) => Float32Array.from(row));
        console.log(JSON.stringify({
            vectors: given.texts.map((text, i) => [...model.textVector(text, rows[i])]),
            known: given.texts.map((text) => model.knows(text)),
            query: [...model.pictureQuery(Float32Array.from(given.picture))],
            like: [...model.queryOf(Float32Array.from(given.vector))],
        }));
    """
    vector = model.embed_images(images[0])
    found = in_node(
        program,
        {
            "about": json.loads(about),
            "arrays": base64.b64encode(arrays).decode(),
            "texts": texts,
            "embeddings": embeddings.tolist(),
            "picture": picture.tolist(),
            "vector": vector.tolist(),
        },
    )
    np.testing.assert_allclose(found["vectors"], model.embed_texts(texts), atol=2e-5)
    assert found["known"] == [True, False, True, False]
    expected = model.picture_queries(vector[None])[0]
    np.testing.assert_allclose(found["query"], expected, atol=2e-5)
    np.testing.assert_allclose(found["like"], expected, atol=2e-5)
    assert json.loads(about)["rules"] == RULES


def hits_on(tab, address, asked):
    one = tab(address).ready()
    one.page.evaluate("async () => { window.backend = (await import('./app.js')).backend; }")
    query = {"texts": [asked], "without": [], "like": [], "unlike": [], "filters": {}, "offset": 0, "limit": 20}
    return one, one.page.evaluate("(query) => backend.search(query)", query)


def test_page_of_a_server_finds_images_by_words(place, tab):
    with serving(place / "index") as client:
        one, found = hits_on(tab, client.address, "greek capital letter")
        with Index.open(place / "index") as index:
            expected = index.search("greek capital letter")
        assert [hit["name"] for hit in found["hits"]][:5] == [hit.path for hit in expected][:5]
        assert one.ask("petit chat").status == (
            "No caption that the model was adapted to has a word of “petit chat”. Closest results:"
        )


def test_exported_page_finds_the_same_hits_as_python(place, tab, tmp_path):
    with Index.open(place / "index") as index:
        library = read_library(index.store, index.model.curve)
        folder = index.model.folder
        write_site(folder, tmp_path / "site", find_runtime(), library, adapted=folder, title="Mine", model="mine")
        expected = index.search("greek capital letter", n=100)
        similar = index.search(image=[unseen_pairs(place)[0][3]], n=5)
    with hosted(static(tmp_path / "site")) as address:
        one, found = hits_on(tab, address, "greek capital letter")
        by_name = {hit.path: hit for hit in expected}
        for hit in found["hits"]:
            [path] = [name for name in by_name if name.endswith(hit["name"])]
            assert hit["score"] == pytest.approx(by_name[path].score, abs=0.02)
        assert expected[0].path.endswith(found["hits"][0]["name"])
        assert one.ask("petit chat").status.startswith("No caption that the model was adapted to")
        data = base64.b64encode(unseen_pairs(place)[0][3].read_bytes()).decode()
        picture = one.page.evaluate(
            """async (data) => {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                const image = new Blob([bytes], { type: "image/webp" });
                const nothing = { texts: [], without: [], like: [], unlike: [], filters: {} };
                return backend.search({ ...nothing, image, offset: 0, limit: 5 });
            }""",
            data,
        )
        assert similar[0].path.endswith(picture["hits"][0]["name"])


def test_export_holds_no_caption_or_feature_of_the_pairs(place, tmp_path, monkeypatch, capsys):
    out = tmp_path / "site"
    monkeypatch.setattr(site, "find_runtime", lambda given: {"ort.js": b"", "ort.wasm": b"", "LICENSE.txt": b""})
    assert main(["export", "web", "-c", str(place / "mine"), "--index", str(place / "index"), "--out", str(out)]) == 0
    names = {path.name for path in out.rglob("*")}
    assert {"adapted.json.gz", "adapted.bin.gz"} <= names
    assert not names & {"features.safetensors", "adapted.safetensors"}
    captions = json.loads((place / "mine" / "adapted.json").read_text(encoding="utf-8"))["captions"]
    about = gzip.decompress((out / "model" / "adapted.json.gz").read_bytes()).decode()
    assert not any(f'"{caption}"' in about for caption in captions if " " in caption)
