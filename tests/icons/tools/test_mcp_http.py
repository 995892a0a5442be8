"""The Model Context Protocol over HTTP, attacked: what clients leave open goes, and what the server promises holds."""

import asyncio
import base64
import gc
import io
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from PIL import Image
from serving import Client, bomb, imported_copy, serving, wait_until

import grr_coca
from grr_coca.infer import load as loading
from grr_coca_icons.tools import mcp_http
from grr_coca_icons.tools.icon_tools import IconTools

pytest.importorskip("mcp")

from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

ACCEPT = {"Accept": "application/json, text/event-stream"}
STAR = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M1 1h7v7H1z"/></svg>'
INITIALIZE = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}


def request_body(method: str, **params: object) -> dict:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def call(client: Client, name: str, **arguments: object):
    """Whether a call of a tool is an error, its text, and the sizes of its pictures."""
    answer = client.post("/mcp", request_body("tools/call", name=name, arguments=arguments), ACCEPT)
    assert answer.status == 200, answer.body
    result = answer.json()["result"]
    texts = [part["text"] for part in result["content"] if part["type"] == "text"]
    pictures = [base64.b64decode(part["data"]) for part in result["content"] if part["type"] == "image"]
    return result.get("isError", False), texts[0], pictures


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """An index of two SVG files and a picture, and the same index as it would come from elsewhere."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("star", "square"):
        (folder / f"{name}.svg").write_text(STAR.replace("1h7", f"{len(name) % 3}h7"))
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    with grr_coca.Index.open(folder / "own.index", "icons", create=True) as index:
        index.add(folder)
    imported_copy(folder / "own.index", folder / "imported.index")
    return folder


@pytest.fixture(scope="module")
def tools(own):
    with serving(own / "own.index") as client:
        yield client


@pytest.mark.ci
def test_large_body_is_rejected_in_json(tools):
    answer = tools.post("/mcp", request_body("tools/list", cursor="a" * 5_000_000), ACCEPT)
    assert answer.status == 413
    assert "too large" in answer.reason()


@pytest.mark.ci
def test_unclosed_sessions_leave_no_files(tools):
    def left() -> int:
        gc.collect()
        return sum(type(one) is StreamableHTTPServerTransport for one in gc.get_objects())

    for _ in range(50):
        answer = tools.post("/mcp", request_body("initialize", **INITIALIZE), ACCEPT)
        assert answer.status == 200
        assert "mcp-session-id" not in answer.headers
    wait_until(lambda: left() == 0, seconds=20)


@pytest.mark.ci
def test_agents_share_the_model_of_the_server(own, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where embeddings of names would be known already
    with serving(own / "own.index") as client:
        loads, load = [], loading.load
        monkeypatch.setattr(loading, "load", lambda *given, **named: (loads.append(given), load(*given, **named))[1])
        for name, arguments in (
            ("search_icons", {"query": "a square"}),
            ("caption_picture", {"data": STAR}),
            ("get_icon", {"icon": f"{own.name}:star"}),
        ):
            assert not call(client, name, **arguments)[0]
        assert loads == []


def test_no_tool_is_called_before_the_model_is_loaded(tools, monkeypatch):
    with monkeypatch.context() as patches:
        patches.setattr(tools.server.service.queue, "model", None)
        answer = tools.post("/mcp", request_body("tools/list"), ACCEPT)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert tools.post("/mcp", request_body("tools/list"), ACCEPT).status == 200


@pytest.mark.ci
def test_other_requests_are_answered_while_tools_are_prepared(own, monkeypatch):
    may_go_on, is_making, real = threading.Event(), threading.Event(), mcp_http._make_manager

    def slow(library):
        is_making.set()
        assert may_go_on.wait(60)
        return real(library)

    monkeypatch.setattr(mcp_http, "_make_manager", slow)
    with serving(own / "own.index") as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/mcp", request_body("tools/list"), ACCEPT)
        assert is_making.wait(60)
        assert client.get("/health").status == 200
        assert not first.done()
        may_go_on.set()
        assert first.result().status == 200


@pytest.mark.ci
def test_failed_manager_is_restarted_without_blocking_calls(own, monkeypatch):
    def failing(manager):
        raise OSError("no more threads")

    with serving(own / "own.index") as client:
        with monkeypatch.context() as patches:
            patches.setattr(StreamableHTTPSessionManager, "run", failing)
            for _ in range(2):
                answer = client.post("/mcp", request_body("tools/list"), ACCEPT)
                assert answer.status == 500
                assert "see the log of the server" in answer.reason()
        assert client.post("/mcp", request_body("tools/list"), ACCEPT).status == 200


def test_manager_that_has_ended_is_started_again(own, monkeypatch):
    ends, run = [], StreamableHTTPSessionManager.run

    @asynccontextmanager
    async def recorded(manager):
        async with run(manager):
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            ends.append(lambda: loop.call_soon_threadsafe(task.cancel))
            yield

    monkeypatch.setattr(StreamableHTTPSessionManager, "run", recorded)
    with serving(own / "own.index") as client:
        assert client.post("/mcp", request_body("tools/list"), ACCEPT).status == 200
        ends[0]()
        wait_until(lambda: client.post("/mcp", request_body("tools/list"), ACCEPT).status == 200 and len(ends) == 2)


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_no_stream_is_held_open(tools, method):
    answer = tools.ask(method, "/mcp", headers={"Accept": "text/event-stream"})
    assert answer.status == 405
    assert "does not accept" in answer.reason()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"[" * 60 + b"]" * 60, {}, 422),
        (b'{"a":' * 60, {}, 422),
        (b"[" + b"null," * 60_000 + b"null]", {}, 413),
        (json.dumps(request_body("tools/list", a="x" * 21_000_000)).encode(), {}, 413),
        (json.dumps(request_body("tools/list")).encode(), {"Host": "evil.example"}, 403),
        (json.dumps(request_body("tools/list")).encode(), {"Origin": "http://evil.example"}, 403),
        (json.dumps(request_body("tools/list")).encode(), {"Sec-Fetch-Site": "cross-site"}, 403),
        (b"", {}, 400),
        (b"{}", {}, 400),
        (
            json.dumps(dict.fromkeys(("jsonrpc", "id", "method", "params", "result", "error"), "x" * 50)).encode(),
            {},
            400,
        ),
        (b"\xff\xfe", {}, 422),
        (json.dumps(request_body("tools/list")).encode(), {"Content-Type": "text/plain"}, 400),
        (json.dumps(request_body("tools/list")).encode(), {"Mcp-Protocol-Version": "9999-99-99"}, 400),
    ],
)
def test_rejects_invalid_calls(tools, body, headers, status):
    answer = tools.ask("POST", "/mcp", body, {"Content-Type": "application/json", **ACCEPT, **headers})
    assert answer.status == status or (status == 400 and answer.status in (400, 406, 415)), answer
    assert len(answer.body) <= 2048


@pytest.mark.ci
def test_waiting_calls_are_limited(own, monkeypatch):
    may_end, real = threading.Event(), IconTools.check_names

    def slow(*arguments, **named):
        assert may_end.wait(60)
        return real(*arguments, **named)

    monkeypatch.setattr(IconTools, "check_names", slow)
    with serving(own / "own.index", capacity=5) as client, ThreadPoolExecutor(12) as pool:
        request = request_body("tools/call", name="check_names", arguments={"names": ["a"]})
        answers = [pool.submit(client.post, "/mcp", request, ACCEPT) for _ in range(12)]
        wait_until(lambda: sum(answer.done() for answer in answers) == 7)
        assert client.get("/health").status == 200
        may_end.set()
        found = [answer.result() for answer in answers]
    assert sorted(answer.status for answer in found) == [200] * 5 + [429] * 7
    assert all("result" in answer.json() for answer in found if answer.status == 200)


def test_tools_compute_in_the_queue_of_the_model(own, tools, monkeypatch):
    """They submit batches, which wait for earlier requests."""
    picture = base64.b64encode((own / "star.svg").read_bytes()).decode()
    queue = tools.server.service.queue
    wait_until(lambda: queue.model is not None)
    done, real = [], queue._process
    monkeypatch.setattr(queue, "_process", lambda batch: (done.append(batch[0].kind.work), real(batch)))
    assert not call(tools, "search_icons", query="a star")[0]
    assert set(done) == {"embed_texts"}
    done.clear()
    assert not call(tools, "caption_picture", data=picture)[0]
    assert done == ["caption"]
    assert not call(tools, "search_by_picture", data=picture)[0]
    assert done == ["caption", "embed_images"]


@pytest.mark.ci
def test_foreign_index_shows_agents_only_given_folders(own):
    for folders, is_shown in (([], False), ([own], True)):
        with serving(own / "imported.index", pictures=folders) as client:
            is_error, text, _ = call(client, "get_icon", icon=f"{own.name}:star")
            assert is_error is not is_shown
            assert ("<svg" in text) is is_shown
            assert is_shown or "--pictures" in text
            is_error, _, (sheet,) = call(client, "search_icons", query="a square")
            assert not is_error
            with Image.open(io.BytesIO(sheet)) as image:
                is_blank = image.convert("L").getextrema() == (255, 255)
            assert is_blank is not is_shown


def make_index(location, *names: str) -> None:
    folder = location.parent / "pictures"
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.svg").write_text(STAR.replace("1h7", f"{len(name) % 3}h7"))
    with grr_coca.Index.open(location, "icons", create=True) as index:
        index.add([folder / f"{name}.svg" for name in names])


@pytest.mark.ci
def test_agents_use_the_current_index(tmp_path):
    """It grows, is replaced by another one, is gone, and is there again."""
    location = tmp_path / "x.index"
    make_index(location, "star")
    with serving(location) as client:

        def exist(*names: str) -> list[bool]:
            is_error, text, _ = call(client, "check_names", names=[f"pictures:{name}" for name in names])
            return text if is_error else [one["exists"] for one in json.loads(text)]

        def found() -> list[str]:
            return [one["icon"] for one in json.loads(call(client, "search_icons", query="a square")[1])]

        assert exist("star", "square", "moon") == [True, False, False]
        make_index(location, "square")
        assert exist("star", "square", "moon") == [True, True, False]
        make_index(tmp_path / "new.index", "moon")
        shutil.rmtree(location)
        assert "no such folder" in exist("moon")
        (tmp_path / "new.index").rename(location)
        assert exist("star", "square", "moon") == [False, False, True]
        assert found() == ["pictures:moon"]
        assert not call(client, "get_icon", icon="pictures:moon")[0]


@pytest.mark.ci
def test_missing_index_is_503_until_it_exists_again(tmp_path):
    location = tmp_path / "x.index"
    make_index(location, "star")
    with serving(location) as client:
        location.rename(tmp_path / "away")
        answer = client.post("/mcp", request_body("tools/list"), ACCEPT)
        assert answer.status == 503
        assert "the index is unavailable" in answer.reason()
        (tmp_path / "away").rename(location)
        assert client.post("/mcp", request_body("tools/list"), ACCEPT).status == 200


@pytest.mark.ci
def test_agents_get_errors_of_corruption_and_later_answers(tmp_path):
    location = tmp_path / "x.index"
    make_index(location, "star", "square")
    content = (location / "vectors.f16").read_bytes()
    with serving(location) as client:
        assert not call(client, "search_icons", query="a square")[0]
        (location / "vectors.f16").write_bytes(b"")
        is_error, text, _ = call(client, "search_icons", query="a square")
        assert is_error
        assert "corrupt" in text
        (location / "vectors.f16").write_bytes(content)
        assert not call(client, "search_icons", query="a square")[0]


@pytest.mark.ci
def test_unresponsive_file_blocks_no_agent(own, tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca_serve.files._SECONDS", 0.3)
    (tmp_path / "star.svg").write_text(STAR)
    with grr_coca.Index.open(tmp_path / "x.index", "icons", create=True) as index:
        index.add(tmp_path)
    (tmp_path / "star.svg").unlink()
    os.mkfifo(tmp_path / "star.svg")
    with serving(tmp_path / "x.index") as client:
        assert call(client, "get_icon", icon=f"{tmp_path.name}:star")[0]
        assert not call(client, "search_icons", query="a square")[0]


def test_missing_sdk_error_names_the_extra(tools, monkeypatch):
    monkeypatch.setattr(mcp_http, "find_spec", lambda name: None)
    answer = tools.post("/mcp", request_body("tools/list"), ACCEPT)
    assert answer.status == 404
    assert "/mcp needs the package mcp; install the extra `mcp` on the server" in answer.reason()


def test_image_limits_also_apply_to_agents(tools):
    for data in (bomb(60_000, 60_000), bomb(12_000, 12_000)):
        is_error, text, _ = call(tools, "caption_picture", data=base64.b64encode(data).decode())
        assert is_error
        assert "too many pixels" in text
    is_error, text, _ = call(tools, "search_by_picture", data=base64.b64encode(own_picture()).decode())
    assert not is_error


def own_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 2000), "red").save(buffer, "JPEG")
    return buffer.getvalue()
