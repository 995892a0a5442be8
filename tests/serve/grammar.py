"""Requests by grammar, and pictures by mutation: whatever comes, no answer is a 5xx but 503 and 504, and none is slow.

`make attack` runs it for an hour against a server in a process of its own; a test runs a small form. A request depends
on its number alone, so one that fails can be sent again: `python tests/serve/grammar.py --first NUMBER --count 1`.
"""

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

SHARED = Path(__file__).parents[1] / "shared"
if str(SHARED) not in sys.path:  # as a script
    sys.path.append(str(SHARED))

from picture_grammar import picture, seed_picture  # noqa: E402

DRAWINGS = Path(__file__).parents[2] / "docs" / "drawings"
MAX_ERROR_BYTES = 2048


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]


# --- JSON by grammar

_TEXTS = [
    "",
    " ",
    "a",
    "red heart",
    "{}" * 50,
    "é\u2028",
    "\ud83d",
    "\0",
    "a" * 9_999,
    "a" * 10_001,
    "data:image/png;base64,",
]
_MAX_BODY = 2_000_000
_NUMBERS: list[object] = [0, 1, -1, 2, 8, 9, 200, 201, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, -0.0]
_KEYS = [
    *("texts", "without", "weights", "like", "unlike", "image", "where", "offset", "limit", "inputs", "input", "model"),
    *("messages", "role", "content", "type", "image_url", "url", "stream", "n", "stop", "labels", "templates", "top"),
    *("prompt", "num_beams", "num_captions", "temperature", "top_p", "seed", "id", "key", "dimensions", "tools"),
]


def value(made: random.Random, depth: int = 0) -> object:
    """Any JSON value."""
    kind = made.randrange(9 if depth < 5 else 6)
    if kind < 3:
        return made.choice(_TEXTS)
    if kind < 5:
        return made.choice(_NUMBERS)
    if kind == 5:
        return made.choice([None, True, False, "icons", f"data:image/png;base64,{'A' * made.randrange(400)}"])
    count = made.choice([0, 1, 2, 3, 17, 3000 if depth == 1 and made.random() < 0.1 else 4])
    if kind < 8:
        element = value(made, depth + 1)
        return [element if count > 20 else value(made, depth + 1) for _ in range(count)]
    return {made.choice([*_KEYS, str(number)]): value(made, depth + 1) for number in range(count)}


_BODIES: dict[str, Callable[[random.Random], dict[str, object]]] = {
    "/search": lambda made: {"texts": ["red heart"], "limit": made.choice([1, 60, 200])},
    "/embed": lambda made: {"inputs": ["a cat", "a dog"][: made.choice([1, 2])]},
    "/v1/embeddings": lambda made: {"model": "icons", "input": ["a cat"], "encoding_format": "base64"},
    "/v1/chat/completions": lambda made: {"model": "icons", "messages": [{"role": "user", "content": [_part(made)]}]},
    "/caption": lambda made: {"image": _uri(made), "num_beams": made.choice([1, 2])},
    "/classify": lambda made: {"image": _uri(made), "labels": ["cat", "dog"], "templates": ["a {}", "{} {}"]},
    "/similar": lambda made: {"image": _uri(made), "where": "width > 3"},
    "/explain": lambda made: {"image": _uri(made)},
    "/session": lambda made: {"key": "a"},
    "/mcp": lambda made: _call(made),
}


def _call(made: random.Random) -> dict[str, object]:
    """A message of the Model Context Protocol."""
    name = made.choice(
        ["search_icons", "search_by_picture", "match_icons", "caption_picture", "get_icon", "check_names"]
    )
    arguments = {
        made.choice(["query", "data", "icon", "names", "index", "limit", "file"]): made.choice(
            [made.choice(_TEXTS), [made.choice(_TEXTS)] * made.choice([1, 200]), _uri(made), made.choice(_NUMBERS)]
        )
        for _ in range(made.randrange(1, 3))
    }
    method, params = made.choice(
        [
            ("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a"}}),
            ("tools/list", {"cursor": made.choice(_TEXTS)}),
            *[("tools/call", {"name": name, "arguments": arguments})] * 6,
            (made.choice(["ping", "resources/list", "notifications/initialized", ""]), {}),
        ]
    )
    return {"jsonrpc": "2.0", "id": made.choice([1, "a", None, 2**70]), "method": method, "params": params}


def _uri(made: random.Random) -> str:
    import base64

    content = picture(made) if made.random() < 0.5 else seed_picture("PNG", "RGB", 64)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _part(made: random.Random) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": _uri(made)}}


def _mutated(content: object, made: random.Random) -> object:
    """A JSON value with some part replaced, repeated, or of another key."""
    if isinstance(content, dict) and content and made.random() < 0.8:
        key = made.choice(list(content))
        changed = {**content, key: _mutated(content[key], made)}
        if made.random() < 0.2:
            changed[made.choice(_KEYS)] = value(made, 2)
        if made.random() < 0.1:
            del changed[key]
        return changed
    if isinstance(content, list) and content and made.random() < 0.8:
        place = made.randrange(len(content))
        changed = [*content[:place], _mutated(content[place], made), *content[place + 1 :]]
        return changed * made.choice([1, 1, 1, 2, 1000 if len(changed) < 5 and made.random() < 0.2 else 3])
    return value(made, 1)


def _written(content: object, made: random.Random) -> bytes:
    """JSON as text, which may be damaged, in another encoding, or hold what is none."""
    pieces, size = [], 0
    for piece in json.JSONEncoder(ensure_ascii=made.random() < 0.5).iterencode(content):
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_BODY:  # what is repeated may be repeated again
            break
    text = "".join(pieces)
    kind = made.randrange(12)
    if kind == 0:
        text = text.replace(
            made.choice('{}[]",:'), made.choice(["", "[", "{", "NaN", '""', "\\u0000"]), made.choice([1, -1])
        )
    elif kind == 1:
        text = made.choice(["[", '{"a":', '"']) * made.choice([10, 60, 5000]) + text
    elif kind == 2:
        text = re.sub(r'"(\w+)":', r'"\1":0,"\1":', text, count=2)  # keys given twice
    encoding = made.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig", "latin-1"])
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


# --- Requests

_WHERES = [
    "width > 3",
    "folder = 'x' and (",
    "not " * 60 + "width < 3",
    "a" * 9000,
    "width in (1, 2)",
    "title like '%'",
    "x = 'é",
    "path like '/etc/%'",
    "1=1; DROP TABLE pictures",
]


_NAMES = [
    *("0" * 16, "f" * 16, "0123456789abcdef", "x" * 3000, "%00", "..%2f..%2fetc%2fpasswd", "../../etc/passwd"),
    *("%2e%2e/%2e%2e/etc/passwd", "....//....//etc/passwd", "/etc/passwd", "file:///etc/passwd", "C:%5Cwindows"),
    "%c0%ae%c0%ae/",
]


def request(number: int) -> Asked:
    """The request of this number."""
    made = random.Random(number)
    kind = made.randrange(10)
    headers = {
        "Content-Type": made.choice(["application/json"] * 12 + ["application/x+json", "text/plain", "image/png"])
    }
    for name, values in (
        ("Origin", ["null", "http://evil.example", "http://localhost"]),
        ("Sec-Fetch-Site", ["cross-site", "same-origin", "x"]),
        ("Host", ["evil.example", "localhost", "[::1].evil.example"]),
        ("Authorization", ["Bearer x", "Bearer", "é".encode().decode("latin-1")]),
        ("Accept", ["text/event-stream", "*/*"]),
        ("Cookie", ["grr_coca_session=x", "=;="]),
    ):
        if made.random() < 0.05:
            headers[name] = made.choice(values)
    if kind < 5:
        path = made.choice(list(_BODIES))
        if path == "/mcp" and made.random() < 0.9:
            headers["Accept"] = "application/json, text/event-stream"
        content: object = _BODIES[path](made)
        for _ in range(made.choice([0, 1, 1, 2, 4])):
            content = _mutated(content, made)
        return Asked("POST", path, _written(content, made), headers)
    if kind < 8:
        path = made.choice(["/caption", "/classify", "/similar", "/explain", "/caption"])
        options = {"labels": ["a", "b"]} if path == "/classify" else {}
        if made.random() < 0.4:
            options[made.choice(_KEYS)] = str(value(made, 9))[:300].encode("utf-8", "replace").decode()
        query = urlencode(options, doseq=True)
        headers["Content-Type"] = "image/png"
        return Asked("POST", f"{path}?{query}", picture(made), headers)
    if kind == 8:
        query = urlencode(
            {"where": made.choice(_WHERES), "offset": made.choice([0, -1, 2**60]), "limit": made.choice([1, 200, 0])}
        )
        return Asked("GET", f"{made.choice(['/pictures', '/duplicates', '/facets', '/info'])}?{query}", b"", {})
    name = made.choice(_NAMES)
    beginning = made.choice(["image/", "picture/", ""])
    return Asked("GET", f"/{beginning}{name}?side={made.choice([64, 320, 1600, -1])}", b"", {})


# --- The attack


@dataclass
class Found:
    """What came back. `wrong`: numbers of requests whose answers are none, with the reason."""

    statuses: Counter = field(default_factory=Counter)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    slowest_health: float = 0.0


def attack(place: tuple[str, int], first: int, count: int, seconds: float = 1e9) -> Found:
    """Send requests one after the other, while `/health` is asked all the time."""
    found, is_over = Found(), threading.Event()

    def ask_health() -> None:
        while not is_over.wait(0.05):
            began = time.perf_counter()
            status, _ = _send(place, Asked("GET", "/health", b"", {}))
            found.slowest_health = max(found.slowest_health, time.perf_counter() - began)
            if status != 200:
                found.wrong.append((-1, f"/health: {status}"))

    watching = threading.Thread(target=ask_health)
    watching.start()
    end = time.monotonic() + seconds
    try:
        for number in range(first, first + count):
            if time.monotonic() > end:
                break
            status, body = _send(place, request(number))
            found.statuses[status] += 1
            if status >= 500 and status not in (503, 504):
                found.wrong.append((number, f"{status}: {body[:200]!r}"))
            elif status >= 400 and len(body) > MAX_ERROR_BYTES:
                found.wrong.append((number, f"{status} with {len(body):,} bytes"))
    finally:
        is_over.set()
        watching.join()
    return found


def _send(place: tuple[str, int], asked: Asked) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*place, timeout=120)
    try:
        connection.request(asked.method, asked.path, asked.body or None, asked.headers)
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionError:
        return 0, b""  # closed, as for headers that are none
    finally:
        connection.close()


def main() -> None:
    """Attack a server in a process of its own, several requests at a time, and print what held."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--clients", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "grr_coca"]
        index = str(Path(folder) / "drawings.index")
        subprocess.run([*command, "index", str(DRAWINGS), "--out", index], check=True)
        with subprocess.Popen([*command, "serve", index, "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
            try:
                _attack_process(server, options)
            finally:
                server.terminate()


def _attack_process(server: subprocess.Popen, options: argparse.Namespace) -> None:
    assert server.stdout is not None
    address = next(line for line in server.stdout if line.startswith("serving "))
    port = int(re.search(r":(\d+)/", address)[1])  # type: ignore[index]
    place = ("127.0.0.1", port)
    while _send(place, Asked("GET", "/ready", b"", {}))[0] != 200:
        time.sleep(0.2)
    before = _memory(server.pid, "VmRSS")
    share = min(options.count, 10**8)
    found = [Found() for _ in range(options.clients)]

    def run(client: int) -> None:
        found[client] = attack(place, options.first + client * share, share, options.seconds)

    clients = [threading.Thread(target=run, args=(client,)) for client in range(options.clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    statuses = sum((one.statuses for one in found), Counter())
    print(f"{statuses.total():,} requests: {dict(sorted(statuses.items()))}")
    print(f"slowest /health: {max(one.slowest_health for one in found):.2f} s")
    most, after = _memory(server.pid, "VmHWM"), _memory(server.pid, "VmRSS")
    print(f"memory: {before:,} MB before, {most:,} MB at most, {after:,} MB after")
    wrong = [one for each in found for one in each.wrong]
    print(f"wrong: {wrong or 'none'}", flush=True)
    if server.poll() is not None or wrong:
        sys.exit(1)


def _memory(process: int, name: str) -> int:
    """Megabytes, by a line of /proc; 0 on other systems."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(name)), 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
