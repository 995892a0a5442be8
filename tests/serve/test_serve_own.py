"""Endpoints of grr-coca: the results of the library, and error messages for invalid requests."""

import base64
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image
from serving import DRAWINGS, EVENTS, JSON, serving
from support import no_space_left, refusals

from grr_coca.common.errors import UserError
from grr_coca_serve.explainer import Explainer
from grr_coca_serve.schemas import HEART

HEART_BYTES = base64.b64decode(HEART.partition(",")[2])


def drawing(name: str) -> bytes:
    return (DRAWINGS / f"{name}.webp").read_bytes()


def form(content: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join([*parts, head, content, b"\r\n--b--\r\n"]), {"Content-Type": "multipart/form-data; boundary=b"}


# --- Captions

ATTACKS = {
    "aborts": '<pattern id="p" width="5" height="99999999999"><rect width="3" height="3"/></pattern>'
    '<path d="M0 0L9 90V0Z" fill="url(#p)"/>',
    "takes hours": '<filter id="f"><s:feTurbulence baseFrequency=".1" s:numOctaves="2000000000"/></filter>'
    '<rect width="99" height="99" filter="url(#f)"/>',
    "panics": '<filter id="f"><feTurbulence baseFrequency="1e308"/></filter>'
    '<rect width="99" height="99" filter="url(#f)"/>',
}


REJECTED = {
    "aborts": (415, "crashes its decoder (SIGABRT)"),
    "takes hours": (413, "decoding takes more than 2 s of processor time"),
    "panics": (415, "an SVG file that cannot be drawn"),
}


def hostile_drawing(name: str) -> bytes:
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:s="http://www.w3.org/2000/svg" viewBox="0 0 99 99">'
    return f"{head}{ATTACKS[name]}</svg>".encode()


@pytest.mark.ci
@pytest.mark.parametrize("name", ATTACKS)
def test_server_answers_while_it_rejects_a_hostile_drawing(served, name):
    pytest.importorskip("resvg_py")
    status, reason = REJECTED[name]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.post, "/caption", hostile_drawing(name))
        while not answer.done():
            assert served.ask("GET", "/health").status == 200
    assert answer.result().status == status
    assert reason in answer.result().reason()


@pytest.mark.ci
def test_drawings_that_take_hours_keep_no_image_waiting(served):
    pytest.importorskip("resvg_py")
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(served.post, "/caption", hostile_drawing("takes hours")) for _ in range(8)]
        while served.metric("grr_coca_queue_requests") < 8:
            assert not all(answer.done() for answer in answers)
        assert served.post("/caption", drawing("guitar")).status == 200
        assert sum(answer.done() for answer in answers) <= 2, "two at a time are drawn, for seconds"
    assert {answer.result().status for answer in answers} <= {413, 504}


@pytest.mark.parametrize("name", ["guitar", "red-apple", "snowman"])
def test_caption_equals_the_librarys_for_any_upload(served, icons, name):
    expected = icons.caption(DRAWINGS / f"{name}.webp")
    uri = f"data:image/webp;base64,{base64.b64encode(drawing(name)).decode()}"
    for answer in (
        served.post("/caption", drawing(name)),
        served.post("/caption", drawing(name), {"Content-Type": "application/x-www-form-urlencoded"}),  # curl's default
        served.post("/caption", *form(drawing(name))),
        served.post("/caption", {"image": uri}),
    ):
        assert answer.status == 200, answer.body
        assert answer.json()["caption"] == expected
        assert answer.json()["model"] == "icons"


def test_form_needs_no_disk(served, monkeypatch):
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", no_space_left)
    picture = io.BytesIO()
    Image.effect_noise((1200, 1000), 90).save(picture, "PNG")
    assert len(picture.getvalue()) > 2**20
    answer = served.post("/caption", *form(picture.getvalue()))
    assert answer.status == 200, answer.body


def test_options_can_be_in_the_query_a_form_or_json(served, icons):
    options = {"num_beams": 3, "num_captions": 3, "prompt": "a"}
    expected = icons.caption(DRAWINGS / "guitar.webp", **options)
    query = "&".join(f"{key}={value}" for key, value in options.items())
    written = {key: str(value) for key, value in options.items()}
    uri = f"data:image/webp;base64,{base64.b64encode(drawing('guitar')).decode()}"
    for answer in (
        served.post(f"/caption?{query}", drawing("guitar")),
        served.post("/caption", *form(drawing("guitar"), **written)),
        served.post("/caption", {"image": uri, **options}),
    ):
        captions = answer.json()["captions"]
        assert [caption["text"] for caption in captions] == expected
        assert all(caption["log_prob"] < 0 for caption in captions)


def test_caption_streams_token_by_token(served, icons):
    answer = served.post("/caption", drawing("red-apple"), EVENTS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *texts, (last, whole) = answer.events()
    assert last == "done"
    assert whole["text"] == icons.caption(DRAWINGS / "red-apple.webp")
    streamed = [data["text"] for name, data in texts if name == "message"]
    assert len(streamed) > 1
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(streamed))
    assert whole["text"] == streamed[-1]


@pytest.mark.parametrize("path", ["/caption", "/v1/chat/completions"])
def test_error_during_a_stream_is_its_last_event(served, monkeypatch, path):
    def failing(*_):
        yield ["a half"]
        raise ZeroDivisionError

    monkeypatch.setattr("grr_coca.infer.image_text_model.stream_captions", failing)
    if path == "/caption":
        answer = served.post(path, drawing("guitar"), EVENTS)
        name, last = answer.events()[-1]
        assert name == "error"
    else:
        content = [{"type": "image_url", "image_url": {"url": HEART}}]
        answer = served.post(
            path, {"model": "icons", "messages": [{"role": "user", "content": content}], "stream": True}
        )
        *_, (_, last), (_, done) = answer.events()
        assert done == "[DONE]"
    assert answer.status == 200
    assert "see the log of the server" in last["error"]["message"]


def test_beams_are_sent_at_the_end_of_a_stream(served, icons):
    answer = served.post("/caption?num_beams=2", drawing("guitar"), EVENTS)
    found = icons.describe(DRAWINGS / "guitar.webp", num_beams=2)
    assert found.confidence is not None
    known = {"confidence": pytest.approx(found.confidence, rel=1e-3), "unfamiliar": found.unfamiliar}
    assert answer.events() == [("done", {"text": found.captions[0].text, **known, "tags": []})]


@pytest.mark.ci
def test_tags_equal_those_of_the_library(served, icons):
    words = icons.tag(DRAWINGS / "guitar.webp", 3)
    tags = [{"tag": word, "probability": pytest.approx(probability, rel=1e-3)} for word, probability in words]
    answer = served.post("/caption?tags=3", drawing("guitar")).json()
    assert answer["tags"] == tags
    assert [one["text"] for one in answer["captions"]] == [icons.caption(DRAWINGS / "guitar.webp", num_beams=5)]
    ((name, whole),) = served.post("/caption?tags=3", drawing("guitar"), EVENTS).events()
    assert (name, whole["tags"]) == ("done", tags)
    assert served.post("/caption", drawing("guitar")).json()["tags"] == []
    assert served.post("/caption?tags=21", drawing("guitar")).status == 422
    sampled = served.post("/caption?tags=3&temperature=1", drawing("guitar"))
    assert (sampled.status, "temperature" in sampled.reason()) == (422, True)


@pytest.mark.ci
def test_model_without_tags_returns_an_error():
    with serving(model="pictograms") as client:
        assert "tags" not in client.get("/info").json()["can"]
        refused = client.post("/caption?tags=3", drawing("guitar"))
        assert (refused.status, refused.reason()) == (422, "this model has no tags; use the model 'icons'")


def test_sampled_captions_depend_only_on_the_seed(served):
    def sampled(seed: int) -> str:
        return served.post(f"/caption?temperature=2&seed={seed}", drawing("guitar")).json()["caption"]

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(3)}) > 1


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 422, "no image sent"),
        (b"hello", 415, "not an image"),
        (HEART_BYTES[:100], 415, "truncated"),
        (HEART_BYTES[:33] + b"\0" * 50, 415, "the picture: "),
        (png((8000, 7000)), 413, "too many pixels: 56,000,000 (limit 50,000,000)"),
        (b"<svg><image href='/etc/passwd'/></svg>", 415, "another image file"),
        (b"GIF89a" + b"\xff" * 40, 415, "the picture: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not an image"),
    ],
)
@pytest.mark.parametrize("path", ["/caption", "/classify?labels=a&labels=b", "/similar", "/explain"])
def test_invalid_image_returns_one_sentence(served, path, content, status, reason):
    answer = served.post(path, content)
    assert answer.status == status, answer.body
    assert reason in answer.reason()


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"{", JSON, 422, "not JSON"),
        (b"[" * 100_000, JSON, 422, "nested too deeply"),
        (b"[1]", JSON, 422, "must be a JSON object"),
        (b'{"image": 7}', JSON, 422, "image: must be a text"),
        (b'{"image": "https://example.com/a.png"}', JSON, 400, "never fetched"),
        (b'{"image": "file:///etc/passwd"}', JSON, 400, "never fetched"),
        (b'{"image": "data:text/plain;base64,aGVsbG8="}', JSON, 400, "not the data URI of an image"),
        (b'{"image": "data:image/png;base64,%%%"}', JSON, 400, "not valid base64"),
        (b'{"image": "' + HEART.encode() + b'", "prompt": "\\ud83d"}', JSON, 422, "prompt: "),
        (b'{"image": "' + HEART.encode() + b'", "seed": 1e999}', JSON, 422, "seed"),
        (b"--b\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, 422, "no image sent"),
        (b"nothing", {"Content-Type": "multipart/form-data"}, 400, "boundary"),
        (
            form(drawing("guitar"))[0].replace(b'name="image"', b'name="photo"'),
            {"Content-Type": "multipart/form-data; boundary=b"},
            422,
            "the form has a file 'photo'; rename it to 'image'",
        ),
    ],
)
def test_invalid_bodies_return_one_sentence(served, body, headers, status, reason):
    answer = served.post("/caption", body, headers)
    assert answer.status == status, answer.body
    assert reason in answer.reason()


PARTS = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": HEART, "detail": "auto"}},
]


@pytest.mark.parametrize(("sent", "expected"), refusals(Path(__file__).with_name("refusals.txt")))
def test_invalid_requests_return_one_sentence(served, sent, expected):
    path, _, written = sent.partition(" ")
    if written == "$HEART":
        bodies = [base64.b64decode(HEART.partition(",")[2])]
    else:
        messages = json.dumps([{"role": "user", "content": PARTS}])
        body = json.loads(written.replace("$MESSAGES", messages).replace("$HEART", HEART))
        bodies = [body, {**body, "stream": True}] if path == "/v1/chat/completions" else [body]
    for body in bodies:
        for headers in ({}, EVENTS):
            answer = served.post(path, body, headers)
            found = f"{answer.status} {answer.reason()}"
            assert found == expected or (expected.endswith("…") and found.startswith(expected[:-1]))


# --- Embeddings and labels


def test_embeddings_equal_those_of_the_library(served, icons):
    texts = ["a cat", "two dogs", "a cat"]
    uri = f"data:image/webp;base64,{base64.b64encode(drawing('guitar')).decode()}"
    found = np.array(served.post("/embed", {"inputs": [texts[0], uri, *texts[1:]]}).json())
    np.testing.assert_allclose(found[[0, 2, 3]], icons.embed_texts(texts), atol=1e-5)
    np.testing.assert_allclose(found[1], icons.embed_images(DRAWINGS / "guitar.webp"), atol=1e-5)
    assert np.array(served.post("/embed", {"inputs": "a cat"}).json()).shape == (1, 128)


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_long_data_uri_is_embedded(served, icons, path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    assert len(uri) > 300_000
    for given in (uri, [uri]):
        answer = served.post(path, {"inputs": given} if path == "/embed" else {"model": "icons", "input": given})
        assert answer.status == 200, answer.body
        (found,) = answer.json() if path == "/embed" else [answer.json()["data"][0]["embedding"]]
        np.testing.assert_allclose(found, icons.embed_images(pixels), atol=1e-5)


@pytest.mark.parametrize("inputs", [["a", "x" * 10_001], ["x"] * 2049])
def test_too_many_and_too_long_texts_are_named(served, inputs):
    answer = served.post("/embed", {"inputs": inputs})
    assert answer.status == 422, answer.body
    assert "inputs" in answer.reason()


def test_labels_equal_those_of_the_library(served, icons):
    labels = ["guitar", "boat", "apple"]
    expected = icons.classify(DRAWINGS / "sailboat.webp", labels, templates=["a {}", "{}"])
    query = "labels=guitar&labels=boat&labels=apple&templates=a+%7B%7D&templates=%7B%7D&top=2"
    for _ in range(2):  # the second time, the embeddings of the labels are kept
        found = served.post(f"/classify?{query}", drawing("sailboat")).json()["labels"]
        assert [one["label"] for one in found] == [one.label for one in expected[:2]]
        assert [one["probability"] for one in found] == pytest.approx(
            [one.probability for one in expected[:2]], abs=1e-4
        )


# --- Heat maps


def test_each_word_has_a_heat_map_of_all_patches(served, icons):
    found = served.post("/explain", drawing("red-apple")).json()
    assert found["caption"] == icons.caption(DRAWINGS / "red-apple.webp")
    assert [one["word"] for one in found["words"]] == found["caption"].split()
    for one in found["words"]:
        heat = np.array(one["heat"])
        assert heat.shape == (4, 4)
        assert heat.min() >= 0
        assert heat.max() == 1


def test_heat_maps_cover_the_part_that_the_model_sees(served, icons):
    """Of an oblong picture, this is a square that reaches beyond it."""
    image = Image.new("RGB", (400, 100), "white")
    image.paste("black", (50, 40, 350, 60))
    file = io.BytesIO()
    image.save(file, "PNG")
    left, top, right, bottom = served.post("/explain", file.getvalue()).json()["square"]
    seen = icons.preprocess.visible_box(image)
    assert (left * 400, top * 100, right * 400, bottom * 100) == pytest.approx(seen, abs=0.1)
    assert left < 0.125
    assert top < 0
    assert right > 0.875
    assert bottom > 1


@pytest.mark.ci
def test_heat_maps_need_no_matplotlib():
    code = "import sys, grr_coca.infer.explain; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_model_that_torch_cannot_load_has_no_heat_maps(monkeypatch, served):
    def refuse():
        raise UserError("its weights are in int8")

    monkeypatch.setattr(served.server.service.explainer, "_load", refuse)
    monkeypatch.setattr(served.server.service.explainer, "_model", None)
    answer = served.post("/explain", drawing("guitar"))
    assert answer.status == 501
    assert "heat maps are unavailable for this model: its weights are in int8" in answer.reason()


def test_few_images_may_wait_for_heat_maps(served, monkeypatch):
    monkeypatch.setattr("grr_coca_serve.explainer._MAX_WAITING", 0)
    answer = served.post("/explain", drawing("guitar"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "2")
    assert "too many images are waiting for heat maps" in answer.reason()


def test_without_torch_heat_maps_name_the_command(served, monkeypatch):
    monkeypatch.setattr(Explainer, "is_installed", False)
    answer = served.post("/explain", drawing("guitar"))
    assert answer.status == 501
    assert "not installed on the server" in answer.reason()
    assert served.get("/info").json()["can"] == ["search", "caption", "tags"]


# --- OpenAPI document


def test_page_and_schema_are_served_locally(served):
    page = served.get("/")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert served.get("/app.js").headers["content-type"].startswith("text/javascript")
    assert served.get("/docs").status == served.get("/redoc").status == 404
    assert served.get("/openapi.json").json()["openapi"].startswith("3.")


def examples(document: dict) -> list[tuple[str, str, dict]]:
    """Each operation with a body in JSON: its method, path and example."""
    found = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None or path == "/session":
                continue
            shown = content.get("examples", {})
            schema = content["schema"].get("$ref", "").rpartition("/")[2]
            values = [one["value"] for one in shown.values()] or document["components"]["schemas"][schema]["examples"]
            found += [(method.upper(), path, value) for value in values]
    return found


def test_documented_examples_work_with_the_stated_answers(served, icons):
    document = served.get("/openapi.json").json()
    sent = examples(document)
    assert {path for _, path, _ in sent} == {
        "/caption",
        "/embed",
        "/classify",
        "/explain",
        "/search",
        "/similar",
        "/v1/embeddings",
        "/v1/chat/completions",
    }
    asked = [(method, path, served.post(path, value)) for method, path, value in sent]
    paths = ["/pictures", "/facets", "/duplicates", "/info", "/health", "/ready", "/v1/models"]
    asked += [("GET", path, served.get(path)) for path in paths]
    for method, path, answer in asked:
        assert answer.status == 200, (path, answer.body)
        schema = document["paths"][path][method.lower()]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})
    captioned = next(answer for _, path, answer in asked if path == "/caption")
    with Image.open(io.BytesIO(base64.b64decode(HEART.partition(",")[2]))) as heart:
        assert captioned.json()["caption"] == icons.caption(heart)
    assert "heart" in captioned.json()["caption"]


def test_server_without_an_index_captions_and_reports_it(icons):
    with serving() as client:
        info = client.get("/info").json()
        assert (info["pictures"], info["can"][0], "search" in info["can"]) == (None, "caption", False)
        assert client.post("/caption", drawing("guitar")).json()["caption"] == icons.caption(DRAWINGS / "guitar.webp")
        for answer in (client.get("/pictures"), client.post("/search", {"texts": ["a"]}), client.get("/image/0")):
            assert answer.status == 404
            assert "no index" in answer.reason()


def test_answers_are_valid_json_for_all_file_names(served):
    # half of a character, as in a file name that is not UTF-8
    answer = served.post("/search", json.dumps({"texts": ["x"], "where": "path = '\udc80'"}).encode(), JSON)
    assert answer.status == 422
    assert "where: " in answer.reason()
    assert Path(served.get("/pictures").json()["pictures"][0]["name"]).is_absolute()
