"""Requests that the guard and the queue reject: too large, too slow, too many, unauthorized, or during shutdown."""

import asyncio
import contextlib
import io
import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection, HTTPException

import pytest
from PIL import Image
from serving import DRAWINGS, EVENTS, OPTIONS, Client, received, running, serving, wait_until
from starlette.responses import Response

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca_serve.endpoints import all_routers
from grr_coca_serve.guard import KEY_VARIABLE, Guard, Limits
from grr_coca_serve.metrics import Metrics
from grr_coca_serve.queue import ModelQueue, wait_for_results
from grr_coca_serve.request_error import RequestError
from grr_coca_serve.server import RunningServer
from grr_coca_serve.service import QueuedRoute

GUITAR = (DRAWINGS / "guitar.webp").read_bytes()


class Gate:
    """Holds every batch of the queue until it is opened."""

    def __init__(self, monkeypatch) -> None:
        self.sizes: list[int] = []
        self._is_open = threading.Event()
        work = ModelQueue._results

        def gated(queue, batch):
            self.sizes.append(len(batch))
            assert self._is_open.wait(30)
            return work(queue, batch)

        monkeypatch.setattr(ModelQueue, "_results", gated)
        monkeypatch.setattr("grr_coca_serve.queue._best_batch", lambda model: (4, 0.5))

    def open(self) -> None:
        self._is_open.set()


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open()


@contextlib.contextmanager
def waiting(client: Client, gate: Gate, count: int) -> Iterator[None]:
    """Requests that are in the queue during the block, and are answered after it."""
    with ThreadPoolExecutor(count) as pool:
        try:
            futures = [pool.submit(client.post, "/caption", GUITAR) for _ in range(count)]
            wait_until(lambda: client.metric("grr_coca_queue_requests") == count)
            yield
        finally:
            gate.open()
        assert [future.result().status for future in futures] == [200] * count


# --- The queue


def test_only_routes_that_use_the_model_are_queued():
    routes = [route for router in all_routers() for route in router.routes]
    assert {route.path for route in routes if isinstance(route, QueuedRoute)} == {
        "/caption",
        "/classify",
        "/embed",
        "/search",
        "/similar",
        "/v1/chat/completions",
        "/v1/embeddings",
    }


def test_requests_that_wait_share_a_batch(gate):
    with serving() as client, ThreadPoolExecutor(10) as pool:
        futures = [pool.submit(client.post, "/caption", GUITAR)]
        wait_until(lambda: gate.sizes == [1])
        futures += [pool.submit(client.post, "/caption", GUITAR) for _ in range(9)]
        wait_until(lambda: client.metric("grr_coca_queue_requests") == 10)
        gate.open()
        assert len({future.result().json()["caption"] for future in futures}) == 1
        assert gate.sizes[0] == 1, "the first does not wait for others"
        assert max(gate.sizes[1:]) == 4, "and those that wait for it share batches"
        assert sum(gate.sizes) == 10
        wait_until(lambda: client.metric("grr_coca_queue_requests") == 0)
        assert client.metric('grr_coca_batch_size_sum{work="caption"}') == 10


def test_many_labels_share_the_queue_with_others(gate):
    gate.open()
    with serving() as client:
        query = "&".join(f"labels=thing+{number}" for number in range(9))
        assert client.post(f"/classify?{query}", GUITAR).status == 200
        assert sorted(gate.sizes) == [1, 1, 4, 4], "nine labels and a picture, at most four at a time"


def test_full_queue_returns_429_with_retry_after(gate):
    with serving(capacity=3) as client:
        with waiting(client, gate, 3):
            for path in ("/caption", "/similar", "/classify?labels=a&labels=b"):
                assert client.post(path, GUITAR).status == 429, path
            answer = client.post("/caption", GUITAR)
            assert answer.status == 429
            assert "too many requests are waiting: 3" in answer.reason()
            assert answer.headers["retry-after"] == "2", "three times half a second"
            assert client.get("/health").status == client.get("/info").status == 200, "what needs no model"
        assert client.post("/caption", GUITAR).status == 200


@pytest.mark.ci
@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["at once", "word by word"])
def test_client_can_send_the_next_request_after_the_answer(headers):
    """With room for one request, the place is free before the last byte of an answer is sent."""
    with serving(capacity=1) as client, contextlib.closing(HTTPConnection(*client.place, timeout=60)) as connection:
        for _ in range(20):
            connection.request("POST", "/caption", GUITAR, headers)
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (200, True)


@pytest.mark.ci
def test_full_queue_rejects_model_requests_before_their_body(gate, index):
    with serving(index, capacity=1) as client, waiting(client, gate, 1):
        paths = client.get("/openapi.json").json()["paths"]
        without = {"/explain", "/session"}  # which do not use the queue
        asked = {path for path, methods in paths.items() if "post" in methods} - without
        assert {"/caption", "/search", "/v1/embeddings"} <= asked
        for path in sorted(asked):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"
            assert client.raw(head.encode()).startswith(b"HTTP/1.1 429 "), path
            assert client.metric(f'grr_coca_requests_total{{route="{path}",status="429"}}') == 1


def test_only_requests_that_can_be_answered_in_time_are_admitted(gate):
    with serving(limits=Limits(seconds=2)) as client, waiting(client, gate, 5):
        answer = client.post("/caption", GUITAR)
        assert answer.status == 429
        assert "too many requests are waiting: 5 (which will take 2." in answer.reason()
        assert " s, limit 2 s); try again in 3 s" in answer.reason()


@pytest.mark.ci
def test_timeout_is_504_and_frees_its_work(gate, monkeypatch):
    monkeypatch.setattr("grr_coca_serve.queue._best_batch", lambda model: (4, 0.01))  # as far as the queue knows
    with serving(limits=Limits(seconds=0.5)) as client:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: client.post("/caption", GUITAR), range(6)))
        assert {answer.status for answer in answers} == {504}
        assert "too busy" in answers[0].reason()
        gate.open()
        wait_until(lambda: client.metric("grr_coca_queue_requests") == 0)
        assert client.post("/caption", GUITAR).status == 200
        assert sum(gate.sizes) <= 1 + 4 + 1, "what was given up was not begun"


def test_late_requests_fail_when_the_queue_closes(gate):
    queue = ModelQueue(object, 4, 1.0, Metrics(), pytest.fail)
    queue.start()
    (late,) = queue.embed_texts(["too late"], expires=0.0)
    assert late.exception(10).status == 504
    (begun,) = queue.embed_texts(["a"], expires=time.monotonic() + 60)
    wait_until(lambda: gate.sizes == [1])
    (waits,) = queue.embed_texts(["b"], expires=time.monotonic() + 60)
    closing = threading.Thread(target=queue.close)
    closing.start()
    wait_until(lambda: queue._is_closed)
    with pytest.raises(RequestError, match="the server is stopping") as refused:
        queue.embed_texts(["c"], expires=time.monotonic() + 60)
    assert refused.value.status == 503
    gate.open()
    closing.join()
    assert isinstance(waits.exception(10), RequestError)
    assert begun.done()


def test_remaining_jobs_are_skipped_after_a_failure():
    jobs = [Future() for _ in range(3)]
    jobs[1].set_exception(RequestError(504, "too late"))
    with pytest.raises(RequestError, match="too late"):
        asyncio.run(wait_for_results(jobs))
    assert [job.cancelled() for job in jobs] == [True, False, True]


# --- The guard around any application


def guarded(app, seconds: float = 0.05):
    limits = Limits(seconds=seconds)
    return Guard(app, limits=limits, metrics=Metrics(), key=None, page=frozenset(), queued_paths=frozenset(),
                 require_capacity=lambda: None, is_local=False)  # fmt: skip


def answer_of(app, *, kind: str = "http") -> list[dict]:
    """What a client gets that sends a request, something that no server sends, and waits."""
    scope = {"type": kind, "method": "GET", "path": "/x", "headers": [], "query_string": b""}
    parts = [{"type": "http.other"}, {"type": "http.request", "body": b"", "more_body": False}]
    sent: list[dict] = []

    async def receive():
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    async def send(message):
        sent.append(message)

    asyncio.run(guarded(app)(scope, receive, send))
    return sent


async def _begin(send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


def test_unresponsive_application_is_abandoned():
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    start, body = answer_of(app)
    assert start["status"] == 504
    assert b"too busy to answer in time" in body["body"]


@pytest.mark.parametrize("ends", ["never", "with an error"])
def test_unfinished_answer_gets_no_second_answer(monkeypatch, ends):
    """The server closes the connection of an answer without an end."""
    monkeypatch.setattr("grr_coca_serve.guard.SECONDS_TO_SEND", 0.05)

    async def app(scope, receive, send):
        await _begin(send)
        if ends == "never":
            await asyncio.Event().wait()
        raise ZeroDivisionError

    assert [message["type"] for message in answer_of(app)] == ["http.response.start", "http.response.body"]


def test_other_asgi_messages_reach_the_application():
    async def app(scope, receive, send):
        await send({"type": "websocket.close", "code": 1000})

    assert answer_of(app, kind="websocket") == [{"type": "websocket.close", "code": 1000}]


@pytest.mark.ci
def test_slow_stream_ends_with_an_error(gate):
    with serving(limits=Limits(seconds=0.5)) as client:
        answer = client.post("/caption", GUITAR, EVENTS)
        assert answer.status == 504
        gate.open()  # or the server would wait for the batch when it ends


def test_client_that_goes_away_ends_its_request(gate):
    with serving() as client:
        head = f"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(GUITAR)}\r\n\r\n".encode()
        first = socket.create_connection(client.place)
        first.sendall(head + GUITAR)
        wait_until(lambda: gate.sizes == [1])  # one batch is being worked on, so others wait
        others = [socket.create_connection(client.place) for _ in range(5)]
        for other in others:
            other.sendall(head + GUITAR)
        wait_until(lambda: client.metric("grr_coca_queue_requests") == 6)
        for connection in (first, *others):
            connection.close()
        wait_until(lambda: client.metric("grr_coca_queue_requests") == 0)
        gate.open()
        assert client.post("/caption", GUITAR).status == 200
        assert gate.sizes == [1, 1], "none of the five was begun"
        assert client.metric('grr_coca_requests_total{route="/caption",status="499"}') == 6


def test_stream_that_is_dropped_ends_its_request(served):
    headers = f"Host: localhost\r\nAccept: text/event-stream\r\nContent-Length: {len(GUITAR)}\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(served.place) as connection:
            connection.sendall(f"POST /caption HTTP/1.1\r\n{headers}".encode() + GUITAR)
            connection.recv(200)
    wait_until(lambda: served.metric("grr_coca_queue_requests") == 0)
    assert served.post("/caption", GUITAR).status == 200


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(RuntimeError("secret of the server"), 500, "see the log of the server"), (MemoryError(), 503, "out of memory")],
)
def test_model_failure_has_no_traceback_and_the_next_works(served, monkeypatch, caplog, error, status, reason):
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patches:
        patches.setattr(ModelQueue, "_captions", fail)
        answer = served.post("/caption", GUITAR)
    assert answer.status == status
    assert reason in answer.reason()
    assert "secret" not in answer.reason()
    assert str(error) in caplog.text
    assert served.post("/caption", GUITAR).status == 200


# --- Bytes and times


@pytest.fixture(scope="module")
def strict():
    """A server with small limits."""
    with serving(limits=Limits(max_bytes=50_000, body_seconds=1, max_pixels=10_000, max_held_bytes=120_000)) as client:
        yield client


def test_rejects_too_many_bytes_before_they_are_sent(strict):
    head = b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(strict.place, timeout=20) as connection:
        connection.sendall(head)
        response = connection.recv(5000)
        assert response.startswith(b"HTTP/1.1 413"), "and not 100"
        while b"send less per request" not in response:
            response += connection.recv(5000) or pytest.fail(f"it does not state the reason: {response!r}")


def test_rejects_too_many_chunked_bytes(strict, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("a file was opened for a body")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", never)
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    head = b"POST /caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(strict.place, timeout=20) as connection:
        connection.sendall(head + 9 * chunk)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    form = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + b"x" * 60_000 + b"\r\n--b--\r\n"
    )
    assert strict.post("/caption", form, {"Content-Type": "multipart/form-data; boundary=b"}).status == 413


@pytest.mark.ci
def test_slow_body_is_408(strict):
    with socket.create_connection(strict.place, timeout=5) as connection:
        connection.sendall(b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            if select.select([connection], [], [], 0.2)[0]:
                break
            connection.sendall(b"x")
        else:
            pytest.fail("it was waited for, though it would take minutes")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_bodies_of_all_requests_together_are_bounded(strict):
    head = b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45000\r\n\r\n"
    slow = [socket.create_connection(strict.place, timeout=5) for _ in range(2)]
    for connection in slow:
        connection.sendall(head + b"x" * 44_000)
    wait_until(lambda: strict.metric("grr_coca_body_bytes") >= 88_000)
    answer = strict.post("/caption", b"x" * 45_000)
    assert answer.status == 429
    assert answer.headers["retry-after"]
    for connection in slow:
        connection.close()
    wait_until(lambda: strict.metric("grr_coca_body_bytes") == 0)
    assert strict.post("/caption", b"x" * 45_000).status == 415


def test_body_with_a_separate_end_is_counted_once(strict):
    head = b"POST /caption HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    with ExitStack() as stack:
        slow, ending = (stack.enter_context(socket.create_connection(strict.place, timeout=5)) for _ in range(2))
        slow.sendall(head + b"Content-Length: 45000\r\n\r\n" + b"x" * 44_000)
        ending.sendall(head + b"Transfer-Encoding: chunked\r\n\r\nafc8\r\n" + b"x" * 45_000 + b"\r\n")
        wait_until(lambda: strict.metric("grr_coca_body_bytes") == 89_000)
        ending.sendall(b"0\r\n\r\n")
        assert ending.recv(100).startswith(b"HTTP/1.1 415 "), "89,000 bytes are held, and 120,000 may be"


def test_rejects_too_many_pixels_before_decoding(strict, monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (101, 100)).save(buffer, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    answer = strict.post("/caption", buffer.getvalue())
    assert answer.status == 413
    assert "10,100 (limit 10,000)" in answer.reason()


def test_rejects_too_large_or_endless_headers(strict, monkeypatch):
    response = strict.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000, seconds=2)
    assert response.startswith(b"HTTP/1.1 400")
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["message"]
    response = strict.raw(b"hello\r\n\r\n", seconds=2)
    assert response.startswith(b"HTTP/1.1 400")
    monkeypatch.setattr("grr_coca_serve.server._SECONDS_TO_WAIT", 0.1)
    with socket.create_connection(strict.place, timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHos")
        assert connection.recv(100) == b"", "closed"


def test_body_that_never_ends_is_not_read_forever(strict, monkeypatch):
    monkeypatch.setattr("grr_coca_serve.server._SECONDS_TO_WAIT", 0.1)
    with socket.create_connection(strict.place, timeout=5) as connection:
        connection.sendall(b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
        assert connection.recv(5000).startswith(b"HTTP/1.1 413")
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(100):
                connection.sendall(b"x" * 10_000)
                time.sleep(0.02)


def test_answer_that_is_never_read_is_not_kept_forever(monkeypatch):
    monkeypatch.setattr("grr_coca_serve.server.SECONDS_TO_SEND", 0.1)
    with serving() as client:
        client.server._guard._app.add_route("/large", lambda request: Response(bytes(20_000_000)))
        with socket.create_connection(client.place) as connection:
            connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            wait_until(lambda: not client.server._server.server_state.connections, seconds=10)


def test_unread_answers_have_a_common_limit(monkeypatch):
    monkeypatch.setattr("grr_coca_serve.server.MAX_UNREAD_BYTES", 50_000_000)
    with serving() as client, ExitStack() as stack:
        client.server._guard._app.add_route("/large", lambda request: Response(bytes(20_000_000)))
        unread = []
        for _ in range(4):
            unread.append(stack.enter_context(socket.create_connection(client.place, timeout=20)))
            unread[-1].sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert unread[-1].recv(15) == b"HTTP/1.1 200 OK"
        assert client.get("/large").status == client.get("/health").status == 200, "who reads is answered"
        sizes = [len(received(connection)) > 20_000_000 for connection in unread]
        assert sizes == [False, False, True, True], "those that were not read for the longest time were cut off"


def test_idle_connections_are_closed_for_new_requests(gate, monkeypatch):
    monkeypatch.setattr("grr_coca_serve.server._MAX_CONNECTIONS", 20)
    with serving() as client, waiting(client, gate, 1), ExitStack() as stack:  # one that is complete is answered
        begun = stack.enter_context(socket.create_connection(client.place, timeout=20))
        begun.sendall(b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        idle = [stack.enter_context(socket.create_connection(client.place, timeout=20)) for _ in range(60)]
        for connection in idle[:5]:
            connection.sendall(b"GET /health HTT")
        assert client.get("/health").status == 200
        assert received(begun) == b"", "it has been silent for longer than all others"
        assert received(idle[10]) == b""
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle[-1].recv(12) == b"HTTP/1.1 200"


def test_open_file_limit_bounds_connections(monkeypatch):
    import resource

    from grr_coca_serve.server import _max_connections

    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 2000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))
    assert _max_connections() == 1200
    assert limits == [(2000, 2000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100_000, 100_000))
    assert _max_connections() == 4096
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    assert _max_connections() == 4096


# --- Authorization


@pytest.fixture(scope="module")
def locked(index):
    """A server that asks for a key."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patches:
            patches.setenv(KEY_VARIABLE, "open sesame")
            client = stack.enter_context(serving(index))
        yield client


def test_key_opens_everything_but_the_page_and_health(locked):
    for path in ("/", "/app.js", "/health", "/ready"):
        assert locked.get(path).status == 200, path
    for path in ("/info", "/pictures", "/metrics", "/image/0", "/openapi.json", "/v1/models", "/nothing"):
        answer = locked.get(path)
        assert answer.status == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY_VARIABLE in answer.reason()
    assert locked.post("/caption", GUITAR).status == 401
    for given in ("open", "open sesame ", "Bearer", ""):
        expected = 200 if given.strip() == "open sesame" else 401
        assert locked.get("/info", Authorization=f"Bearer {given}").status == expected
    assert locked.get("/info", Authorization="bearer open sesame", Host="pictures.example").status == 200
    assert locked.get("/info", Authorization="Basic open sesame").status == 401
    assert locked.get("/info", Authorization="Bearer \xe9").status == 401


def test_key_is_in_no_answer_and_no_log(locked, caplog, capfd, monkeypatch):
    caplog.set_level(0)
    opened = {"Authorization": "Bearer open sesame"}
    paths = ("/", "/info", "/ready", "/metrics", "/openapi.json", "/pictures", "/nothing?key=open", "/v1/models")
    answers = [locked.get(path, **opened) for path in paths]
    given = ({"key": "open sesame"}, {"key": "open sesame", "x": 1}, {"key": ["open sesame"]}, b'{"key": "open sesame')
    answers += [locked.post("/session", body) for body in given]
    answers.append(locked.post("/caption", b"no picture", opened))
    monkeypatch.setattr(locked.server._guard, "_app", None)  # a defect, whose traceback is logged
    with contextlib.suppress(HTTPException, ConnectionError):
        answers.append(locked.get("/info", **opened))
    told = [*(str(answer.headers) + answer.body.decode() for answer in answers), caplog.text, *capfd.readouterr()]
    assert not any("sesame" in text for text in told)
    assert any("'NoneType' object is not callable" in text for text in told[-3:])


def test_page_gets_a_cookie_for_the_key(locked):
    assert locked.post("/session", {"key": "wrong"}).status == 401
    answer = locked.post("/session", {"key": "open sesame"})
    assert (answer.status, answer.body) == (204, b"")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "sesame" not in cookie
    assert "expires" not in cookie.lower()
    value = cookie.partition(";")[0]
    assert locked.get("/info", Cookie=value).status == 200
    for other in ("other=1", 'pixel_signature={"theme": "dark"}', "version=1", "flag", "list[]=a b", "a@b=é"):
        assert locked.get("/info", Cookie=f"{other}; {value}".encode().decode("latin-1")).status == 200, other
    for wrong in (value[:-1], value + "a", "grr_coca_session=", "grr_coca_session=é".encode().decode("latin-1"), "=;="):
        assert locked.get("/info", Cookie=wrong).status == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:99", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8000", 403),
        ("192.168.0.7", 403),
        ("", 200),
        ("[::1].evil.example", 403),
        ("[::1]evil.example:8000", 403),
        ("[::ffff:127.0.0.1]", 200),
        ("[::ffff:10.0.0.1]", 403),
        ("[localhost]", 403),
        ("localhost:8000:80", 403),
        ("127.0.0.1:8000.evil.example", 403),
        ("localhost.", 403),
    ],
)
def test_local_server_without_a_key_accepts_only_its_hosts(served, host, status):
    response = served.raw(f"GET /info HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert response.startswith(f"HTTP/1.1 {status}".encode())


@pytest.mark.parametrize(("host", "status"), [("::1", 403), ("0.0.0.0", 200)])
def test_local_addresses_are_recognized_in_any_notation(host, status):
    printed: list[str] = []
    try:
        server = RunningServer(replace(OPTIONS, host=host), printed.append)
    except UserError:
        pytest.skip("this machine has no such address")
    with running(server) as client:
        answer = client.get("/info", Host="evil.example")
        assert answer.status == status
        assert ("anyone" in "".join(printed)) == (status == 200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://pictures.example"}, 200),  # a proxy has changed Host
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}, 403),
        ({"Sec-Fetch-Site": "SAME-ORIGIN"}, 403),
        ({"Origin": "http://localhost:8000"}, 200),
        ({"Origin": "http://LOCALHOST:8000"}, 200),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
    ],
)
def test_pages_of_other_sites_are_rejected(served, locked, headers, status):
    key = {"Authorization": "Bearer open sesame"}
    for client, given in ((served, {}), (locked, key)):
        for path in ("/caption", "/search", "/v1/embeddings", "/session"):
            answer = client.post(path, b"", {"Host": "localhost:8000", **headers, **given})
            assert (answer.status == 403) == (status == 403), path
            assert status == 200 or "another site" in answer.reason()
    answer = served.get("/image/0123456789abcdef", Host="localhost:8000", **headers)
    assert answer.status == (404 if status == 200 or "Sec-Fetch-Dest" in headers else 403)


def test_other_sites_can_link_but_not_frame_the_page(served):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert served.get("/", **link).status == 200
    for within in ("iframe", "object", "image", "script", "empty"):
        assert served.get("/", **{**link, "Sec-Fetch-Dest": within}).status == 403


def test_other_sites_cannot_detect_which_images_exist(served):
    known = served.get("/pictures").json()["pictures"][0]["id"]
    paths = (f"/image/{known}", "/image/0123456789abcdef", "/nothing", "/", "/info", "/health")
    answers = [served.get(path) for path in paths] + [served.post("/caption", b""), served.post("/search", {"a": 1})]
    answers.append(served.get("/info", Host="evil.example"))
    assert {answer.status for answer in answers} >= {200, 403, 404, 422}
    assert {answer.headers.get("cross-origin-resource-policy") for answer in answers} == {"same-origin"}


@pytest.mark.ci
@pytest.mark.parametrize("given", ["Schlüssel", "ключ", " spaces around \t", "🔑", "a\n"])
def test_key_can_be_any_text_that_fits_into_a_header(monkeypatch, given):
    monkeypatch.setenv(KEY_VARIABLE, given)
    key = given.strip()
    with serving() as client:
        for sent in {key.encode(), *([key.encode("latin-1")] if key.isascii() or "ü" in key else [])}:
            head = b"GET /info HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nAuthorization: Bearer "
            assert client.raw(head + sent + b"\r\n\r\n").startswith(b"HTTP/1.1 200 "), sent
            assert client.raw(head + sent + b"x\r\n\r\n").startswith(b"HTTP/1.1 401 ")
        assert client.post("/session", {"key": key}).status == 204
        assert client.post("/session", {"key": f" {key} "}).status == 204


@pytest.mark.parametrize("given", ["", "  ", "\n", "two\nlines", "bell\a", "a" * 1001])
def test_rejects_an_ineffective_key_at_the_start(monkeypatch, given):
    monkeypatch.setenv(KEY_VARIABLE, given)
    with pytest.raises(UserError, match=KEY_VARIABLE):
        RunningServer(OPTIONS, print)


# --- Methods and paths


def test_missing_path_is_404_and_wrong_method_is_405(served):
    assert served.get("/nothing").status == 404
    assert served.get("/../../../etc/passwd").status == 404
    assert served.get("/%2e%2e/%2e%2e/etc/passwd").status == 404
    assert served.get("//etc/passwd").status == 404
    assert served.get("/app.js/").status in (404, 307)
    for method, path in (("GET", "/caption"), ("DELETE", "/pictures"), ("PUT", "/"), ("POST", "/info")):
        answer = served.ask(method, path)
        assert answer.status == 405, path
        assert method in answer.reason()
    assert served.ask("HEAD", "/").status == 200


def test_metrics_are_labelled_by_endpoint_and_not_by_path(served):
    for number in range(5):
        served.get(f"/image/{number}")
        served.get(f"/nothing/{number}")
    routes = set(re.findall(r'route="([^"]*)"', served.get("/metrics").body.decode()))
    assert "/image/{identity}" in routes
    assert "other" in routes
    assert not [route for route in routes if re.search(r"\d$", route)]


# --- Shutdown


@pytest.mark.ci
def test_stopping_answers_accepted_requests_only(gate):
    with serving() as client, waiting(client, gate, 8):
        client.server.stop()
        answer = client.post("/caption", GUITAR)
        assert answer.status == 503
        assert "stopping" in answer.reason()
        assert answer.headers["connection"] == "close"
        assert client.get("/ready").status == 503
        assert client.get("/health").status == 200


def test_unloadable_model_stops_the_server_with_a_reason(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise UserError("no such engine")

    monkeypatch.setattr(grr_coca, "load", fail)
    with pytest.raises(UserError, match="no such engine"):
        RunningServer(OPTIONS, print).run()
