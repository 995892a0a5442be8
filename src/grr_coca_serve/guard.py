"""ASGI middleware for all requests: authentication, limits on bytes and time, and shutdown.

The guard reads the entire body before the application gets the request. It limits the size of the body, the time for
sending it, and the number of parts of its JSON. Therefore, nothing too large is parsed, written to disk or decoded. If
the client disconnects after sending the body, its request ends immediately.
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grr_coca.common.errors import UserError
from grr_coca_serve.metrics import Metrics
from grr_coca_serve.queue import deadline_error
from grr_coca_serve.request_error import RequestError, to_request_error
from grr_coca_serve.responses import error_response

KEY_VARIABLE = "GRR_COCA_API_KEY"
MAX_KEY_LENGTH = 1000
SESSION = "grr_coca_session"
"""Name of the page's cookie."""
DEADLINE = "deadline"
"""Key, in the state of a request, of the time by which the response must start, by the monotonic clock."""

_PUBLIC = frozenset({"/health", "/ready", "/session"})
"""Paths that clients can request without a key, in addition to the files of the page."""
_MAX_PUBLIC_BYTES = 4096
"""Maximum size of the body of a request that does not need a key. The largest such body contains the key itself, which
the page sends to `/session`."""
_COMMON_HEADERS = [(b"cross-origin-resource-policy", b"same-origin")]
"""Headers of every response. Without this header, any web page could show an image of the index, or test whether the
image exists."""
SECONDS_TO_SEND = 300.0
"""Number of seconds after which a response that the client does not read is truncated."""
_GONE = 499
"""Status of requests whose client has disconnected. It is used only in metrics."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resource limits for requests.

    Attributes:
        max_bytes: Maximum size of a body, in bytes.
        max_pixels: Maximum number of pixels of an image.
        seconds: Maximum time from the end of the body to the start of the response, in seconds.
        body_seconds: Maximum time to send the body, in seconds.
        max_held_bytes: Maximum total size of all bodies in memory, in bytes.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    seconds: float = 30.0
    body_seconds: float = 60.0
    max_held_bytes: int = 256 * 2**20


class Key:
    """Key that requests must send, as `Authorization: Bearer KEY` or in the page's cookie.

    The cookie contains only a hash of the key. All replicas of a server that have the same key accept the same cookie.

    Attributes:
        session: Value of the cookie.

    Raises:
        UserError: If the key is empty, too long, or cannot be sent in a request.
    """

    def __init__(self, key: str) -> None:
        written = key.strip().encode("utf-8", "surrogateescape")
        if not written:
            raise UserError(
                f"{KEY_VARIABLE} is empty, which would allow access without a key; set it to a key, or unset it"
            )
        if any(byte < 32 or byte == 127 for byte in written):
            raise UserError(
                f"{KEY_VARIABLE} has a line break or control character, which no request can send; use another key"
            )
        if len(written) > MAX_KEY_LENGTH:
            raise UserError(f"{KEY_VARIABLE} has {len(written):,} bytes (limit {MAX_KEY_LENGTH:,}); use a shorter key")
        self._digest = _digest(written)
        self.session = hmac.new(written, b"grr-coca session", hashlib.sha256).hexdigest()

    def matches(self, given: str | bytes) -> bool:
        """Return whether a key is valid. Surrounding spaces are ignored. The comparison takes constant time."""
        content = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else given
        return hmac.compare_digest(_digest(content.strip()), self._digest)

    def is_authorized(self, headers: dict[bytes, bytes]) -> bool:
        """Return whether a request has the key or, if it does not send a key, a valid cookie.

        Args:
            headers: Headers of the request, with names in lower case.
        """
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            # Some clients write headers in UTF-8, others in Latin-1.
            return self.matches(given) | self.matches(given.decode("latin-1"))
        # Browsers send the cookies of all servers on a host, and `http.cookies` would stop at the first cookie that it
        # cannot parse.
        cookie = cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(SESSION, "")
        return hmac.compare_digest(cookie.encode(), self.session.encode())


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@dataclass
class _Exchange:
    """Request and its response.

    `status` is the status of the response, and 499 until there is a response. `has_begun` and `is_complete` state
    whether sending the response has started or finished.
    """

    receive: Receive
    send: Send
    status: int = _GONE
    has_begun: bool = False
    is_complete: bool = False


class Guard:
    """ASGI middleware around the application.

    Args:
        app: The application.
        limits: Limits per request.
        metrics: Metrics that count the requests.
        key: Required key. If this is None, requests are not authenticated.
        page: Paths of the page's files, which clients can request without a key.
        queued_paths: Paths whose requests use the queue of the model.
        require_capacity: Function that raises a `RequestError` if the queue is full. It is called before the body is
            read. Such an early rejection takes a third of the time of a later one, and delays accepted requests less.
        is_local: Whether only this machine can reach the server. Without a key, requests to other hosts than localhost
            are then rejected.

    Attributes:
        is_draining: Whether the server is stopping. New requests are then rejected.
        in_flight: Number of requests that are being handled.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        key: Key | None,
        page: frozenset[str],
        queued_paths: frozenset[str],
        require_capacity: Callable[[], None],
        is_local: bool,
    ) -> None:
        self.is_draining = False
        self.in_flight = 0
        self._app, self._limits, self._metrics, self._key = app, limits, metrics, key
        self._public, self._is_local = _PUBLIC | page, is_local
        self._queued_paths, self._require_capacity = queued_paths, require_capacity
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, and count it in the metrics."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        exchange = _Exchange(receive, send)
        self.in_flight += 1
        try:
            await self._handle(scope, exchange)
        finally:
            self.in_flight -= 1
            route = self._route(scope)
            self._metrics.requests.labels(route, str(exchange.status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    async def _handle(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            self._require_allowed(scope)
            if scope["path"] in self._queued_paths:
                self._require_capacity()
            body = await self._read_body(scope, exchange)
            if body is not None:
                try:
                    if _is_json(scope):
                        require_bounded(body)
                    await self._run_app(scope, exchange, body)
                finally:
                    self._add_held_bytes(-len(body))
        except Exception as error:
            if not exchange.is_complete:  # otherwise, the application has reported the error
                await self._send_error(scope, exchange, to_request_error(error))

    async def _send_error(self, scope: Scope, exchange: _Exchange, error: RequestError) -> None:
        if exchange.has_begun:
            return  # the server closes the connection, because the response is not complete
        exchange.status = error.status
        response = error_response(error)
        response.raw_headers += self._headers()
        await response(scope, exchange.receive, exchange.send)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of every response. A server that is stopping closes its connections."""
        return [*_COMMON_HEADERS, (b"connection", b"close")] if self.is_draining else _COMMON_HEADERS

    # --- Authentication

    def _require_allowed(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        path = scope["path"]
        if self.is_draining and path != "/health":
            raise RequestError(503, "the server is stopping; try again in a moment", retry_after=5)
        _require_same_site(scope["method"], headers)
        if self._key is None:
            if self._is_local and not _is_local_host(headers.get(b"host", b"")):
                # Otherwise, a web page could read the index by DNS rebinding.
                raise RequestError(
                    403,
                    "this server accepts only the hosts localhost and 127.0.0.1; to allow others, start it "
                    f"with a key in {KEY_VARIABLE}",
                )
        elif not (path in self._public or self._key.is_authorized(headers)):
            raise RequestError(
                401,
                "this server requires a key; send the header 'Authorization: Bearer KEY' with the value of "
                f"{KEY_VARIABLE} on the server",
            )

    # --- Body of the request

    async def _read_body(self, scope: Scope, exchange: _Exchange) -> bytes | None:
        """Return the entire body, or None if the client disconnected before the end.

        The bytes in memory are counted with `_add_held_bytes`.
        """
        body = bytearray()
        try:
            declared = dict(scope["headers"]).get(b"content-length", b"")
            size = int(declared) if declared.isdigit() else 0
            limit = _MAX_PUBLIC_BYTES if scope["path"] in self._public else self._limits.max_bytes
            self._require_bytes(size, size, limit)
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await exchange.receive()
                    if message["type"] == "http.disconnect":
                        self._add_held_bytes(-len(body))
                        return None
                    chunk = message.get("body", b"")
                    self._require_bytes(len(body) + len(chunk), len(chunk), limit)
                    self._add_held_bytes(len(chunk))
                    body += chunk
                    if not message.get("more_body", False):
                        return bytes(body)
        except BaseException as error:
            self._add_held_bytes(-len(body))
            if isinstance(error, TimeoutError):
                reason = f"the body did not arrive within {self._limits.body_seconds:g} s; send less per request"
                raise RequestError(408, reason) from error
            raise

    def _require_bytes(self, size: int, more: int, limit: int) -> None:
        """Check that a body is not too large, and that its next `more` bytes can be held in memory."""
        if size > limit:
            raise RequestError(413, f"the request is too large: more than {limit:,} bytes; send less per request")
        if self._held_bytes + more > self._limits.max_held_bytes:
            raise RequestError(429, "too many large requests at the same time; try again in a moment", retry_after=2)

    def _add_held_bytes(self, size: int) -> None:
        self._held_bytes += size
        self._metrics.bytes_held.set(self._held_bytes)

    def _route(self, scope: Scope) -> str:
        """Return the path of the endpoint, without the values of its parameters.

        It is used as a label of metrics, and the number of different labels must be limited.
        """
        if scope["path"] in self._queued_paths:
            return scope["path"]
        return getattr(scope.get("route"), "path", None) or "other"

    # --- Response

    async def _run_app(self, scope: Scope, exchange: _Exchange, body: bytes) -> None:
        """Run the application until it has answered, its time has run out, or the client disconnects.

        Raises:
            RequestError: If the time has run out.
        """
        deadline = time.monotonic() + self._limits.seconds
        scope["state"] = {**scope.get("state", {}), DEADLINE: deadline}
        is_gone = asyncio.Event()
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        end: list[Message] = []

        async def receive() -> Message:
            if parts:
                return parts.pop()
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                end.append(message)
                return
            if message["type"] == "http.response.start":
                exchange.has_begun, exchange.status = True, message["status"]
                message["headers"] = [*message.get("headers", []), *self._headers()]
            await exchange.send(message)

        async def run() -> None:
            # The end of the response is sent only after the application has ended and released its queue slot, because
            # the client may send its next request immediately.
            try:
                await self._app(scope, receive, send)
            finally:
                if end:
                    await exchange.send(end[0])
                    exchange.is_complete = True

        async def watch() -> None:
            while (await exchange.receive())["type"] != "http.disconnect":
                pass
            is_gone.set()

        running = asyncio.ensure_future(run())
        watching = asyncio.ensure_future(watch())
        try:
            await self._wait_for_app(exchange, running, watching)
            if running.done():
                running.result()
            elif not watching.done():
                await _cancel(running)
                raise deadline_error()
        finally:
            await _cancel(running)
            await _cancel(watching)

    async def _wait_for_app(self, exchange: _Exchange, running: asyncio.Future, watching: asyncio.Future) -> None:
        """Wait until the application has answered, its time has run out, or the client has disconnected."""
        both = {running, watching}
        await asyncio.wait(both, timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED)
        if exchange.has_begun and not running.done() and not watching.done():
            await asyncio.wait(both, timeout=SECONDS_TO_SEND, return_when=asyncio.FIRST_COMPLETED)
        # the client has the complete response, so the application may end without cancellation
        if exchange.is_complete:
            await asyncio.wait({running}, timeout=SECONDS_TO_SEND)


async def _cancel(task: asyncio.Future) -> None:
    """Cancel a task, and wait until it ends."""
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def _is_json(scope: Scope) -> bool:
    """Return whether the application may read the body as JSON. The header may occur more than once."""
    return any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])


def _require_same_site(method: str, headers: dict[bytes, bytes]) -> None:
    """Raise a `RequestError` if a page of another site sent the request.

    Clients other than browsers do not send the headers that show this. Links to the page are allowed. Behind a proxy,
    the origin is compared with the `Host` header that the proxy sends.
    """
    # Browsers send this header to HTTPS servers and to servers on the same machine. Pages cannot change it.
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        is_link = method in ("GET", "HEAD") and headers.get(b"sec-fetch-dest") == b"document"
        is_own = site in (b"same-origin", b"none") or is_link
    else:
        origin = headers.get(b"origin")
        is_own = origin is None or origin.partition(b"://")[2].lower() == headers.get(b"host", b"").lower()
    if not is_own:
        raise RequestError(
            403,
            "a page of another site sent this request in a browser; open the page of this server instead. A proxy must "
            "forward the header Host unchanged",
        )


_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]*))(?::[0-9]*)?", re.ASCII)


def _is_local_host(host: bytes) -> bool:
    """Return whether a `Host` header is localhost, a loopback address, or empty. The port does not matter."""
    found = _HOST.fullmatch(host.decode("latin-1").strip().lower())
    if found is None:
        return False
    name = found["six"] or found["name"]
    return name in ("", "localhost", None) or is_loopback(name)


def is_loopback(address: str) -> bool:
    """Return whether a text is a loopback IP address, which only this machine can reach."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


# --- Limits on the JSON in requests, which are checked before the JSON is parsed

# A body of a few megabytes can contain a million values. Pydantic would validate each value and report each error,
# which would take minutes and gigabytes of memory.

MAX_PARTS = 50_000
"""Maximum number of parts of the JSON in a body. Parts are texts, commas, brackets, and quotation marks within texts. A
conversation of 1,000 messages with images has 20,000 parts."""
MAX_DEPTH = 50
"""Maximum nesting depth of lists and objects."""

_NEXT_PART = re.compile(rb'[^"\[\]{},]*+(["\[\]{},])')  # possessive: each byte is inspected only once


def require_bounded(body: bytes) -> None:
    """Check the number of parts and the nesting depth of JSON, but not whether it is valid.

    Raises:
        RequestError: With status 413 if the JSON has too many parts, and with status 422 if it is nested too deeply or
            is not encoded in UTF-8.
    """
    if not json.detect_encoding(body).startswith("utf-8"):
        raise RequestError(422, "the body must be encoded in UTF-8")
    count, depth, place = 0, 0, 0
    while part := _NEXT_PART.match(body, place):
        place, kind = part.end(), part[1]
        count += 1
        if kind == b'"':
            place, num_quotes = _end_of_text(body, place, MAX_PARTS)
            count += num_quotes
        depth += (kind in b"[{") - (kind in b"]}")
        if count > MAX_PARTS:
            raise RequestError(
                413,
                f"the JSON has too many parts: more than {MAX_PARTS:,} texts, commas and brackets; send "
                "less per request",
            )
        if depth > MAX_DEPTH:
            raise RequestError(
                422,
                f"the JSON is nested too deeply: more than {MAX_DEPTH} levels of lists and objects; send fewer levels",
            )


def _end_of_text(body: bytes, start: int, max_quotes: int) -> tuple[int, int]:
    """Return the position after a text, and the number of quotation marks within the text.

    Counting stops when the text has more than `max_quotes` quotation marks.
    """
    for count in range(max_quotes + 1):
        end = body.find(b'"', start)
        if end < 0:
            return len(body), count
        before = body[start:end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:  # otherwise, the quotation mark is escaped
            return end + 1, count
        start = end + 1
    return start, max_quotes + 1
