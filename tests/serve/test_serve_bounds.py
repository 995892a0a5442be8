"""Limits of a request: parts of JSON, lengths of labels, bytes without a key. Error messages are short."""

import json
import random
from contextlib import nullcontext

import numpy as np
import pytest
from serving import JSON, serving

from grr_coca_serve.guard import KEY_VARIABLE, MAX_DEPTH, MAX_PARTS, require_bounded
from grr_coca_serve.request_error import MAX_BYTES, RequestError
from grr_coca_serve.schemas import HEART

MANY = MAX_PARTS // 2
"""Elements of a list, or keys of an object, that are just too many."""


def parts_of(content: object) -> tuple[int, int]:
    """Number and depth of the parts of a JSON value, as they are written."""
    if isinstance(content, str):
        return 1 + content.count('"'), 0
    if not isinstance(content, list | dict):
        return 0, 0
    within = [parts_of(one) for one in (content if isinstance(content, list) else content.values())]
    keys = [parts_of(key)[0] for key in content] if isinstance(content, dict) else []
    counts = [count for count, _ in within] + keys
    return 2 + max(0, len(within) - 1) + sum(counts), 1 + max((depth for _, depth in within), default=0)


def value(made: random.Random, depth: int = 0) -> object:
    """A random JSON value, with many quotation marks and backslashes."""
    kind = made.randrange(7 if depth < 6 else 5)
    if kind < 2:
        return "".join(made.choices('ab"\\[]{},: \n\u2200\u00e9\u2028', k=made.randrange(12)))
    if kind < 5:
        return made.choice([None, True, -1, 2.5e-7, 10**20])
    if kind == 5:
        return [value(made, depth + 1) for _ in range(made.randrange(5))]
    return {str(value(made, 9)): value(made, depth + 1) for _ in range(made.randrange(5))}


def test_parts_are_counted_by_their_written_size(monkeypatch):
    for seed in range(200):
        content = value(random.Random(seed))
        limits = dict(zip(("MAX_PARTS", "MAX_DEPTH"), parts_of(content), strict=True))
        body = json.dumps(content, ensure_ascii=seed % 2 == 0, indent=seed % 3 or None).encode()
        for name, limit in limits.items():
            monkeypatch.setattr(f"grr_coca_serve.guard.{name}", limit)
        require_bounded(body)
        for name, limit in limits.items():
            if limit:
                with monkeypatch.context() as patches:
                    patches.setattr(f"grr_coca_serve.guard.{name}", limit - 1)
                    with pytest.raises(RequestError):
                        require_bounded(body)


def test_escaped_quotes_are_scanned_up_to_the_limit(monkeypatch):
    monkeypatch.setattr("grr_coca_serve.guard.MAX_PARTS", 10)
    for num_quotes, is_refused in ((8, False), (9, False), (10, True), (100_000, True)):
        body = b'"' + rb"\"" * num_quotes + b'"'
        with pytest.raises(RequestError, match="too many parts") if is_refused else nullcontext():
            require_bounded(body)


@pytest.mark.ci
@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"null," * MAX_PARTS + b"null]",
        b"{" + b",".join(b'"%d":1' % n for n in range(MANY)) + b"}",
        b'["' + b'\\"' * MAX_PARTS + b'"]',
        b'"' + b'\\"' * MAX_PARTS,
        b'""' * (MAX_PARTS + 1),
        b"[" * MAX_PARTS,
        ("[" + '"\u2200",' * MANY + "0]").encode(),
        ("[" + '"\u2200",' * MANY + "0]").encode("utf-16-le"),  # of which U+2200 has the byte of a quotation mark
        b"\xfe\xff[]",
    ],
)
def test_rejects_too_much_json_before_parsing(served, body, monkeypatch):
    monkeypatch.setattr("json.loads", lambda *_: pytest.fail("parsed"))
    for path in ("/embed", "/v1/embeddings", "/v1/chat/completions", "/search", "/caption", "/classify"):
        for kind in ("application/json", "application/x+json; charset=utf-16", "text/plain, Application/JSON"):
            answer = served.post(path, body, {"Content-Type": kind})
            assert answer.status in (413, 422), path
            assert len(answer.body) <= MAX_BYTES


def test_duplicate_content_type_does_not_hide_json(served, monkeypatch):
    monkeypatch.setattr("json.loads", lambda *_: pytest.fail("parsed"))
    body = b"[" * MAX_DEPTH * 2
    for kinds in (("application/json", "image/png"), ("image/png", "application/json")):
        head = "".join(f"Content-Type: {kind}\r\n" for kind in kinds)
        response = served.raw(
            f"POST /embed HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert response.startswith(b"HTTP/1.1 422 ")


def test_usual_client_requests_are_within_the_limits(served, icons):
    part = {"type": "text", "text": 'say "what" it shows'}
    picture = {"type": "image_url", "image_url": {"url": HEART}}
    messages = [{"role": "user", "content": [part]}] * 999 + [{"role": "user", "content": [part, picture]}]
    assert served.post("/v1/chat/completions", {"model": "icons", "messages": messages}).status == 200
    texts = [f"{number} cats, a dog" for number in range(300)]
    found = np.array(served.post("/embed", {"inputs": texts}).json())
    assert len(found) == 300
    np.testing.assert_allclose(found[::100], icons.embed_texts(texts[::100]), atol=1e-5)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
@pytest.mark.parametrize("wrong", [None, [None], [0.5], {}, ""])
def test_report_of_wrong_elements_ends_at_the_first(served, path, wrong, monkeypatch):
    counts: list[int] = []
    made = "grr_coca_serve.app.validation_error"
    from grr_coca_serve.pictures import validation_error

    monkeypatch.setattr(made, lambda error: counts.append(len(error.errors())) or validation_error(error))
    answer = served.post(path, {"model": "icons", "input": [wrong] * 2000, "inputs": [wrong] * 2000})
    assert answer.status in (400, 422)
    assert counts[0] < 12, "some for each type that an element may have"


@pytest.mark.parametrize("path", ["/search", "/embed", "/v1/embeddings", "/caption", "/classify"])
@pytest.mark.parametrize("key", ["a" * 200_000, "\x01" * 100_000, "é" * 100_000, "\U0001f600" * 9, "["])
def test_errors_with_long_quotes_are_short(served, path, key):
    for content in ({key: 1}, {"texts": [{key: 1}]}, {"inputs": key, key: key}, {"model": key, "input": "a"}):
        answer = served.post(path, content)
        assert answer.status >= 400
        assert len(answer.body) <= MAX_BYTES
        assert answer.reason()
    form = f'--b\r\nContent-Disposition: form-data; name="{key[:9000]}"\r\n\r\n1\r\n--b--\r\n'.encode()
    answer = served.post("/caption", form, {"Content-Type": "multipart/form-data; boundary=b"})
    assert 400 <= answer.status < 500
    assert len(answer.body) <= MAX_BYTES


def test_error_that_lists_every_repeated_label_is_short(served):
    labels = [f"label {n}" for n in range(500)]
    answer = served.post("/classify", {"image": HEART, "labels": labels + labels})
    assert answer.status == 422
    assert len(answer.body) <= MAX_BYTES
    assert "labels must differ in more than case and spaces" in answer.reason()


def test_rejects_too_long_labels_times_templates(served, monkeypatch):
    content = {"image": HEART, "labels": ["a" * 1000, *map(str, range(99))], "templates": ["{}" * 5000] * 16}
    with monkeypatch.context() as patches:
        patches.setattr("grr_coca_serve.service.fill_templates", lambda *_: pytest.fail("filled"))
        answer = served.post("/classify", content)
    assert answer.status == 422
    assert "95,040,000 characters (limit 1,000,000)" in answer.reason()
    fine = {"image": HEART, "labels": ["cat", "dog"], "templates": ["{} and {}", "a {{}}"]}
    assert served.post("/classify", fine).status == 200


@pytest.mark.parametrize("path", ["/session", "/health", "/ready", "/", "/app.js"])
def test_endpoints_without_a_key_accept_no_large_body(served, path):
    body = json.dumps({"key": "a", **{str(n): n for n in range(1000)}}).encode()
    answer = served.ask("POST" if path == "/session" else "GET", path, body, JSON)
    assert answer.status == 413
    assert "more than 4,096" in answer.reason()


def test_key_of_the_largest_size_opens_a_session(monkeypatch):
    key = "é" * 500
    monkeypatch.setenv(KEY_VARIABLE, key)
    with serving() as client:
        assert client.post("/session", {"key": key}).status == 204
        assert client.post("/session", {"key": key[1:]}).status == 401
