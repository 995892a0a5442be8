"""The gate that every request passes: who may ask, how many bytes, how long, and what happens when the server stops.

It reads the whole body, bounded in bytes and time, before the application sees the request. So nothing is parsed,
written to a disk or decoded that is too large, and a client that goes away afterwards ends its request at once.
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import cookie_parser

from grr_coca.serve.metrics import Metrics
from grr_coca.serve.queue import too_late
from grr_coca.serve.refusal import Refusal, error_headers, json_bytes, refusal_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

KEY_VARIABLE = "GRR_COCA_API_KEY"
SESSION = "grr_coca_session"
"""Name of the cookie of the page."""
DEADLINE = "deadline"
"""Key of a request's state: when its answer must have begun, by the monotonic clock."""
EXITS = "exits"
"""Key of a request's state: an `ExitStack` that is closed after the response."""

_PUBLIC = frozenset({"/health", "/ready", "/session"})
"""Paths that need no key, beside the files of the page."""
SECONDS_TO_SEND = 300.0
"""A response that is not read by then is cut off."""
_GONE = 499
"""The status, in the metrics alone, of a request whose client went away."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may take.

    `max_bytes`: of a body; `max_pixels`: of an image; `seconds`: from the end of the body to the beginning of the
    answer; `body_seconds`: to send the body; `max_held_bytes`: bodies of all requests together.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    seconds: float = 30.0
    body_seconds: float = 60.0
    max_held_bytes: int = 256 * 2**20


class Key:
    """The key that requests must have, as `Authorization: Bearer KEY` or as the cookie of the page.

    The cookie holds no key: it is a hash of it, which replicas with the same key share.
    """

    def __init__(self, key: str) -> None:
        self._digest = _digest(key.encode())
        self.session = hmac.new(key.encode(), b"grr-coca session", hashlib.sha256).hexdigest()

    def opens(self, given: str) -> bool:
        """True if this is the key. Takes the same time for every wrong one."""
        return hmac.compare_digest(_digest(given.encode("utf-8", "surrogateescape")), self._digest)

    def is_with(self, headers: dict[bytes, bytes]) -> bool:
        """True if a request has the key, or the cookie of a page that had it."""
        scheme, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            return self.opens(given.strip())
        # Browsers send the cookies of all servers of a host. `http.cookies` gives up at the first that it cannot read.
        cookie = cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(SESSION, "")
        return hmac.compare_digest(cookie.encode(), self.session.encode())


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@dataclass
class _Exchange:
    """One request and its response. `has_begun`, `is_complete`: how much of the response was sent."""

    receive: Receive
    send: Send
    status: int = _GONE
    has_begun: bool = False
    is_complete: bool = False


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: what answers.
        limits: of each request.
        metrics: where requests are counted.
        key: what requests must have; None: anyone may ask.
        page: paths of the files of the page, which need no key.
        of_model: paths whose requests take a place in the queue of the model.
        require_room: raises a `Refusal` if the queue is full. Asked before the body is read, a refusal takes a third of
            the time, which accepted requests would wait for.
        is_local: True if only this machine can reach the server.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        metrics: Metrics,
        key: Key | None,
        page: frozenset[str],
        of_model: frozenset[str],
        require_room: Callable[[], None],
        is_local: bool,
    ) -> None:
        self.is_draining = False
        self.in_flight = 0
        self._app, self._limits, self._metrics, self._key = app, limits, metrics, key
        self._public, self._is_local = _PUBLIC | page, is_local
        self._of_model, self._require_room = of_model, require_room
        self._held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        exchange = _Exchange(receive, send)
        self.in_flight += 1
        try:
            await self._answered(scope, exchange)
        finally:
            self.in_flight -= 1
            route = self._route(scope)
            self._metrics.requests.labels(route, str(exchange.status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    async def _answered(self, scope: Message, exchange: _Exchange) -> None:
        try:
            self._require_allowed(scope)
            if scope["path"] in self._of_model:
                self._require_room()
            body = await self._read(scope, exchange)
            if body is not None:
                try:
                    await self._run(scope, exchange, body)
                finally:
                    self._hold(-len(body))
        except Exception as error:
            if not exchange.is_complete:  # otherwise the application has told the error
                await self._refuse(exchange, refusal_of(error))

    async def _refuse(self, exchange: _Exchange, refusal: Refusal) -> None:
        if exchange.has_begun:
            return  # the server closes the connection, since the response is not complete
        exchange.status = refusal.status
        content = json_bytes(refusal.content)
        headers = error_headers(refusal, content)
        if self.is_draining:
            headers.append((b"connection", b"close"))
        await exchange.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": content})

    # --- Who may ask

    def _require_allowed(self, scope: Message) -> None:
        headers = dict(scope["headers"])
        path = scope["path"]
        if self.is_draining and path != "/health":
            raise Refusal(503, "the server is stopping; try again in a moment", retry_after=5)
        if self._key is None:
            if self._is_local and not _is_own_name(headers.get(b"host", b"")):
                # Otherwise a web page could read the index, if its own name is made to lead to this machine.
                raise Refusal(
                    403,
                    "this server answers under the names localhost and 127.0.0.1 alone; to open it to others, start it "
                    f"with a key in {KEY_VARIABLE}",
                )
        elif not (path in self._public or self._key.is_with(headers)):
            raise Refusal(401, f"this server asks for a key: send 'Authorization: Bearer KEY' ({KEY_VARIABLE})")

    # --- The body

    async def _read(self, scope: Message, exchange: _Exchange) -> bytes | None:
        """The whole body; None if the client went away before its end. Its bytes are held then (`_hold`)."""
        body = bytearray()
        try:
            declared = dict(scope["headers"]).get(b"content-length", b"")
            size = int(declared) if declared.isdigit() else 0
            self._require_bytes(size, size)
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await exchange.receive()
                    if message["type"] == "http.disconnect":
                        self._hold(-len(body))
                        return None
                    chunk = message.get("body", b"")
                    self._require_bytes(len(body) + len(chunk), len(chunk))
                    self._hold(len(chunk))
                    body += chunk
                    if not message.get("more_body", False):
                        return bytes(body)
        except BaseException as error:
            self._hold(-len(body))
            if isinstance(error, TimeoutError):
                reason = f"the body did not arrive within {self._limits.body_seconds:g} s"
                raise Refusal(408, reason) from error
            raise

    def _require_bytes(self, size: int, more: int) -> None:
        """Raise an error if a body of this size, of which so many bytes are not held yet, is too large."""
        if size > self._limits.max_bytes:
            raise Refusal(413, f"too many bytes: more than {self._limits.max_bytes:,}, the limit of a request")
        if self._held + more > self._limits.max_held_bytes:
            raise Refusal(429, "too many large requests at once; try again in a moment", retry_after=2)

    def _hold(self, size: int) -> None:
        self._held += size
        self._metrics.bytes_held.set(self._held)

    def _route(self, scope: Message) -> str:
        """The path of the endpoint, without its parameters: a metric must not have endless labels."""
        if scope["path"] in self._of_model:
            return scope["path"]
        return getattr(scope.get("route"), "path", None) or "other"

    # --- The answer

    async def _run(self, scope: Message, exchange: _Exchange, body: bytes) -> None:
        """Run the application until it has answered, its time is over, or the client goes away."""
        deadline = time.monotonic() + self._limits.seconds
        exits = contextlib.ExitStack()
        scope["state"] = {**scope.get("state", {}), DEADLINE: deadline, EXITS: exits}
        is_gone = asyncio.Event()
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if parts:
                return parts.pop()
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_last:  # before the client can send its next request
                exits.close()
            if message["type"] == "http.response.start":
                exchange.has_begun, exchange.status = True, message["status"]
                if self.is_draining:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await exchange.send(message)
            exchange.is_complete = is_last

        async def watch() -> None:
            while (await exchange.receive())["type"] != "http.disconnect":
                pass
            is_gone.set()

        running = asyncio.ensure_future(self._app(scope, receive, send))
        watching = asyncio.ensure_future(watch())
        try:
            await self._wait(exchange, running, watching)
            if running.done():
                running.result()
            elif not watching.done():
                await _cancelled(running)
                raise too_late()
        finally:
            await _cancelled(running)
            await _cancelled(watching)
            exits.close()

    async def _wait(self, exchange: _Exchange, running: asyncio.Future, watching: asyncio.Future) -> None:
        """Wait until the application has answered, its time is over, or the client has gone away."""
        both = {running, watching}
        await asyncio.wait(both, timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED)
        if exchange.has_begun and not running.done() and not watching.done():
            await asyncio.wait(both, timeout=SECONDS_TO_SEND, return_when=asyncio.FIRST_COMPLETED)
        if exchange.is_complete:  # the client has all, and may be gone; the application ends by itself
            await asyncio.wait({running}, timeout=SECONDS_TO_SEND)


async def _cancelled(task: asyncio.Future) -> None:
    """Cancel a task, and wait for its end."""
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def _is_own_name(host: bytes) -> bool:
    """True if the header `Host` names this machine alone: localhost, or an address of the loopback."""
    name = host.decode("latin-1").strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
