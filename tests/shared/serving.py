"""A server in this process, and a client that can send anything."""

import http.client
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grr_coca_search.portable import export_parquet, import_parquet
from grr_coca_search.store import open_store
from grr_coca_serve.guard import Limits
from grr_coca_serve.server import RunningServer, ServeOptions

DRAWINGS = Path(__file__).parents[2] / "docs" / "drawings"
JSON = {"Content-Type": "application/json"}
EVENTS = {"Accept": "text/event-stream"}
OPTIONS = ServeOptions(
    index=None,
    pictures=(),
    model=None,
    engine="auto",
    host="127.0.0.1",
    port=0,
    opens_browser=False,
    capacity=64,
    limits=Limits(),
)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def reason(self) -> str:
        """The sentence of a refusal, which is JSON in one form."""
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "Traceback" not in error["message"]
        return error["message"]

    def events(self) -> list[tuple[str, Any]]:
        """Server-sent events with their names."""
        found = []
        for block in self.body.decode().strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            data = fields["data"]
            found.append((fields.get("event", "message"), data if data == "[DONE]" else json.loads(data)))
        return found


class Client:
    """Sends requests to one server."""

    def __init__(self, address: str, server: RunningServer | None = None) -> None:
        self.address = address
        self.server = server
        self.place = (str(urlsplit(address).hostname), int(urlsplit(address).port or 0))

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Answer:
        """Send a request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.place, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """GET."""
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, headers: Mapping[str, str] = {}) -> Answer:
        """POST of bytes, or of anything else as JSON."""
        if isinstance(body, bytes):
            return self.ask("POST", path, body, headers)
        return self.ask("POST", path, json.dumps(body).encode(), {**JSON, **headers})

    def raw(self, content: bytes, seconds: float = 10) -> bytes:
        """Send bytes as they are, and return all that comes back until the server closes or falls silent."""
        with socket.create_connection(self.place, timeout=seconds) as connection:
            connection.sendall(content)
            return received(connection)

    def metric(self, line: str) -> float:
        """A number of `/metrics`, 0 if it is not there yet."""
        for found in self.get("/metrics").body.decode().splitlines():
            if found.startswith(f"{line} "):
                return float(found.rsplit(" ", 1)[1])
        return 0.0


def imported_copy(index: Path, location: Path) -> Path:
    """An index as somebody else would get it: exported, and imported at another place."""
    file = location.with_suffix(".parquet")
    with open_store(str(index)) as store:
        export_parquet(store, file)
    import_parquet(file, str(location))
    return location


SHAPES = {
    "square": "M3 3h18v18H3z",
    "minus": "M2 11h20v2H2z",
    "triangle": "M12 2L22 22H2z",
    "pause": "M2 2h6v20H2zM16 2h6v20h-6z",
    "circle": "M12 2a10 10 0 1 0 .1 0z",
    "plus": "M10 2h4v8h8v4h-8v8h-4v-8H2v-4h8z",
}


def write_icon_sets(folder: Path) -> list[Path]:
    """Two icon sets, `one` and `two`, of the same shapes."""
    icons = {name: {"body": f'<path d="{shape}"/>'} for name, shape in SHAPES.items()}
    paths = [folder / f"{prefix}.json" for prefix in ("one", "two")]
    for path in paths:
        path.write_text(json.dumps({"prefix": path.stem, "icons": icons, "width": 24, "height": 24}))
    return paths


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, or is silent for the time of the socket."""
    chunks = []
    try:
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    except (TimeoutError, ConnectionError):
        pass
    return b"".join(chunks)


@contextmanager
def serving(index: object = None, **changes: Any) -> Iterator[Client]:
    """A server on a free port, which is ready. At the end it is stopped."""
    location = None if index is None else str(index)
    with running(RunningServer(replace(OPTIONS, index=location, **changes), [].append)) as client:
        yield client


@contextmanager
def running(server: RunningServer) -> Iterator[Client]:
    """Run a server until the end of the block. It is ready."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        client = Client(server.address, server)
        wait_until(lambda: bool(failures) or client.get("/ready").status == 200)
        assert not failures, failures
        yield client
    finally:
        server.stop()
        thread.join(30)
        if thread.is_alive():
            server.stop()  # at once
            thread.join(10)
        assert not thread.is_alive()


def wait_until(happened: Callable[[], bool], seconds: float = 200) -> None:
    """Wait for something that others do."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that would take gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(1000)) * 3
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
