"""A server of an adapted model: its captions, vectors and searches are those of the library."""

import base64
import re

import numpy as np
import pytest
from adapted import unseen_pairs, write_adapted
from serving import serving

from grr_coca import load
from grr_coca_search.index import Index


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
    said = grr_coca(*command.replace("INDEX", str(tmp_path / "missing")).split())
    assert said.err.startswith(f"error: {tmp_path / 'missing'}")


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
    said = grr_coca("search", place / "index", "petit chat")
    assert said.code == 0
    assert said.err.startswith("the model was adapted to captions without the words of 'petit chat'; the nearest of")
    assert grr_coca("search", place / "index", "petit arrow").err.find("petit") == -1


def test_stream_of_a_caption_is_the_caption(served, images):
    whole = served.post("/caption", images[5].read_bytes()).json()["captions"][0]["text"]
    data = base64.b64encode(images[5].read_bytes()).decode()
    body = {
        "model": "mine",
        "stream": True,
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{data}"}}],
            }
        ],
    }
    chunks = [chunk for _, chunk in served.post("/v1/chat/completions", body).events() if chunk != "[DONE]"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
