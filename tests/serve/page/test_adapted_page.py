"""An adapted model on a server and on its page: captions, words, vectors and hits equal those of Python."""

import base64
import gzip
import json
import re

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

pytestmark = pytest.mark.ci


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


@pytest.fixture(scope="module")
def served(place):
    with serving(place / "index") as client:
        yield client


@pytest.fixture(scope="module")
def images(place):
    return unseen_pairs(place)[0]


def test_captions_and_vectors_equal_those_of_the_model(served, place, images):
    model = load(place / "mine")
    answer = served.post("/caption", images[0].read_bytes())
    assert answer.status == 200
    described = model.describe(images[0])
    assert answer.json()["captions"][0]["text"] == described.captions[0].text
    texts = ["latin letter", "猫"]
    found = served.post("/v1/embeddings", {"model": "mine", "input": texts, "encoding_format": "float"}).json()
    vectors = np.array([row["embedding"] for row in found["data"]])
    np.testing.assert_allclose(vectors, model.embed_texts(texts), atol=1e-4)


def test_report_names_a_command_that_serves(place, grr_coca, tmp_path):
    page = (place / "mine" / "report.html").read_text(encoding="utf-8")
    command = re.search(r"then grr-coca (serve [^<]*)</p>", page)[1]
    result = grr_coca(*command.replace("INDEX", str(tmp_path / "missing")).split())
    assert result.err.startswith(f"error: {tmp_path / 'missing'}")


def test_hits_equal_those_of_the_library(served, place, images):
    with Index.open(place / "index") as index:
        for asked in ("greek capital letter", "arrow"):
            found = served.post("/search", {"texts": [asked]}).json()
            expected = index.search(asked)
            assert [hit["name"] for hit in found["hits"]][:5] == [hit.path for hit in expected][:5]
            assert found["can_tell"] == expected.can_tell
            assert found["unknown"] == list(expected.unknown) == []
        similar = served.post("/similar", images[3].read_bytes()).json()
        assert similar["hits"][0]["name"] == str(images[3])


def test_query_without_a_known_word_is_reported(served, place, grr_coca):
    found = served.post("/search", {"texts": ["petit chat"]}).json()
    assert found["unknown"] == ["petit chat"]
    assert len(found["hits"]) > 5
    result = grr_coca("search", place / "index", "petit chat")
    assert result.code == 0
    assert result.err.startswith("the model was adapted to captions without the words of 'petit chat'; the closest of")
    assert grr_coca("search", place / "index", "petit arrow").err.find("petit") == -1


def test_stream_of_a_caption_is_the_caption(served, images):
    whole = served.post("/caption", images[5].read_bytes()).json()["captions"][0]["text"]
    url = f"data:image/webp;base64,{base64.b64encode(images[5].read_bytes()).decode()}"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    body = {"model": "mine", "stream": True, "messages": messages}
    chunks = [chunk for _, chunk in served.post("/v1/chat/completions", body).events() if chunk != "[DONE]"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


# --- The page


def test_words_equal_those_of_python(in_node):
    texts = [*ODD, *random_texts(400)]
    program = """
        const { wordsOf } = await import("./adapted.js");
        console.log(JSON.stringify(given.texts.map((text) => wordsOf(text, given.unspaced))));
    """
    found = in_node(program, {"texts": texts, "unspaced": UNSPACED})
    assert found == [split_words(text) for text in texts]
    assert found[2][:8] == ["北", "京", "大", "学", "北京", "京大", "大学", "is"]


def test_vectors_equal_those_of_python(in_node, place, images, tmp_path):
    model = load(place / "mine")
    (tmp_path / "model").mkdir()
    files = site._write_adapted(place / "mine", tmp_path)
    about, arrays = (gzip.decompress((tmp_path / files[name]).read_bytes()) for name in ("about", "arrays"))
    texts = ["greek capital letter alpha", "petit chat", "Arrow, arrow!", "猫"]
    embeddings = load("icons", engine="onnx").embed_texts(texts)
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
    expected = model.image_queries(vector[None])[0]
    np.testing.assert_allclose(found["query"], expected, atol=2e-5)
    np.testing.assert_allclose(found["like"], expected, atol=2e-5)
    assert json.loads(about)["rules"] == RULES


def hits_on(tab, address, asked):
    one = tab(address).ready()
    one.page.evaluate("async () => { window.backend = (await import('./app.js')).backend; }")
    query = {"texts": [asked], "without": [], "like": [], "unlike": [], "filters": {}, "offset": 0, "limit": 20}
    return one, one.page.evaluate("(query) => backend.search(query)", query)


def test_page_of_a_server_finds_images_by_words(served, place, tab):
    one, found = hits_on(tab, served.address, "greek capital letter")
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
