"""What serving costs: `grr-coca serve` beside `grr-coca caption`, and what it does with twice as much as it can do.

    python benchmarks/serving.py [--only icons,b32]

Four parts, each with a server in a process of its own, and a client in another one:

- captions a second at 64 clients, over those of `grr-coca caption` on the same files, without its start; in turns;
- one client: the time of a caption over that of decoding and captioning in this process, in turns;
- a search as somebody types, in an index of 260,000 pictures with random embeddings and captions of the corpus;
- for a minute, twice as many requests as the server can answer.

The machine must be idle otherwise. Run it by `make bench-serving`: with OMP_WAIT_POLICY=PASSIVE threads of PyTorch wait
here as they do in the server. `b32` is a preset of that size with random weights: its captions have 20 tokens, and its
speed is that of a trained one. Writes `results/serving.json`. A quarter of an hour on two cores.
"""

import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from engines import random_checkpoint
from machine import parse, parser_of, report
from search_index import of_code

import grr_coca
from grr_coca.infer.generate import GenerationOptions
from grr_coca.model.shipped_models import DEFAULT, shipped_folder
from grr_coca.search.entry import Entry, Stamp
from grr_coca.search.index_model import IndexModel
from grr_coca.search.store import Changes
from grr_coca.search.stores import make_store

CLIENTS = 64
FILES = {DEFAULT: 3000, "b32": 200}
ALONE = {DEFAULT: 200, "b32": 20}
ROUNDS = 3
"""Turns of `grr-coca caption` and of the clients; medians count."""
MAX_LENGTH = 20
"""Tokens of a caption. With random weights, captions do not end before."""
INDEXED = 260_000
TYPED = ("red heart", "a cat on a sofa", "blue car", "mountain", "birthday cake", "two dogs", "airplane", "green leaf")
OVERLOAD_SECONDS = 60.0
SMOKE = {"files": 40, "alone": 3, "indexed": 500, "overload": 2.0, "clients": 8}


def main() -> None:
    """Measure, and write the report."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", default=f"{DEFAULT},b32", help="models to measure")
    options = parse(parser)
    names = [DEFAULT] if options.smoke else options.only.split(",")
    if unknown := set(names) - FILES.keys():
        parser.error(f"--only: no model {', '.join(sorted(unknown))}; there are {', '.join(FILES)}")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            rows += _of_model(name, Path(place), smoke=bool(options.smoke))
        rows += _typing(Path(place), SMOKE["indexed"] if options.smoke else INDEXED)
    report("serving", rows, options.out)


def _row(model: str, what: str, value: float, goal: str) -> dict[str, object]:
    return {"model": model, "measured": what, "value": round(value, 3), "goal": goal}


def _of_model(name: str, place: Path, *, smoke: bool) -> Iterator[dict[str, object]]:
    folder = shipped_folder(name) or random_checkpoint(name, place)
    count, clients = (SMOKE["files"], SMOKE["clients"]) if smoke else (FILES[name], CLIENTS)
    pictures = place / f"{name}-pictures"
    pictures.mkdir()
    contents = list(islice(cycle(of_code()), count))
    for number, content in enumerate(contents):
        (pictures / f"{number:05}.webp").write_bytes(content)
    goal = name == DEFAULT
    by_hand, served, seconds = [], [], []
    with _server("-c", folder, "--queue", CLIENTS) as (address, pid):
        for _ in range(1 if smoke else ROUNDS):
            by_hand.append(_captions_per_second(folder, pictures, count))
            found, statuses, took = asyncio.run(_closed_loop(address, contents, clients))
            assert set(statuses) == {200}, statuses
            served.append(count / took)
            seconds += found
        rate = statistics.median(served)
        ratio = statistics.median(ours / other for ours, other in zip(served, by_hand, strict=True))
        yield _row(name, "grr-coca caption: captions a second", statistics.median(by_hand), "")
        yield _row(name, f"{clients} clients: captions a second", rate, "")
        yield _row(name, "ratio", ratio, ">= 0.7" if goal else "")
        yield _row(name, "p50, ms", 1000 * np.percentile(seconds, 50), "")
        yield _row(name, "p99 / p50", np.percentile(seconds, 99) / np.percentile(seconds, 50), "<= 5" if goal else "")
        alone = SMOKE["alone"] if smoke else ALONE[name]
        yield _row(
            name, "one client: HTTP and queue, ms", _overhead(address, folder, contents[:alone]), "<= 5" if goal else ""
        )
        length = SMOKE["overload"] if smoke else OVERLOAD_SECONDS
        yield from _overload(name, address, pid, contents, 2 * rate, length, np.percentile(seconds, 99))


# --- The two sides


@contextmanager
def _server(*arguments: object) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "grr_coca", "serve", "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found is not None
            asyncio.run(_wait_until_ready(found[0]))
            yield found[0], server.pid
        finally:
            server.terminate()


def _captions_per_second(folder: Path, pictures: Path, count: int) -> float:
    """Captions a second of `grr-coca caption`, without its start."""

    def seconds(of: Path) -> float:
        began = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "grr_coca",
            "caption",
            str(of),
            "-c",
            str(folder),
            "--json",
            "--max-length",
            str(MAX_LENGTH),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began

    start = seconds(min(pictures.iterdir()))
    return (count - 1) / (seconds(pictures) - start)


# --- Clients


class _Connection:
    """A connection to the server that is kept."""

    def __init__(self, address: str) -> None:
        self._place = (urlsplit(address).hostname, urlsplit(address).port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._streams is None or self._streams[0].at_eof():  # the server closes those that were idle
            self._streams = await asyncio.open_connection(*self._place)
        reader, writer = self._streams
        writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n".encode())
        writer.write(b"Content-Type: application/json\r\n\r\n" if body[:1] == b"{" else b"\r\n")
        writer.write(body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        content = await reader.readexactly(int(length[1]) if length else 0)
        return int(head[9:12]), content

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()


async def _wait_until_ready(address: str) -> None:
    while True:
        connection = _Connection(address)
        status, _ = await connection.post("/embed", b'{"inputs": "ready"}')
        connection.close()
        if status == 200:
            return
        await asyncio.sleep(0.1)


async def _closed_loop(address: str, contents: Sequence[bytes], clients: int) -> tuple[list[float], Counter, float]:
    """Each client sends its next picture when it has its answer. Returns seconds, statuses, and the whole time."""
    waiting = iter(contents)
    seconds: list[float] = []
    statuses: Counter = Counter()

    async def client() -> None:
        connection = _Connection(address)
        for content in waiting:
            began = time.perf_counter()
            status, _ = await connection.post(f"/caption?max_length={MAX_LENGTH}", content)
            seconds.append(time.perf_counter() - began)
            statuses[status] += 1
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds, statuses, time.perf_counter() - began


def _overhead(address: str, folder: Path, contents: Sequence[bytes]) -> float:
    """Milliseconds of a caption over HTTP, less those of decoding and captioning here; medians, in turns."""
    model, options = grr_coca.load(folder), GenerationOptions(max_length=MAX_LENGTH)
    with_http, without = [], []

    async def turns() -> None:
        connection = _Connection(address)
        for content in contents:
            began = time.perf_counter()
            status, _ = await connection.post(f"/caption?max_length={MAX_LENGTH}", content)
            with_http.append(time.perf_counter() - began)
            assert status == 200
            began = time.perf_counter()
            model.describe_many([model.preprocess.decode(content, "a picture")], options=options)
            without.append(time.perf_counter() - began)

    asyncio.run(turns())
    return 1000 * (statistics.median(with_http) - statistics.median(without))


# --- Overload


def _overload(
    name: str, address: str, pid: int, contents: Sequence[bytes], rate: float, length: float, p99: float
) -> Iterator[dict[str, object]]:
    """Requests that come at a fixed rate, whatever happens to them."""
    before, peak = _megabytes(pid), 0.0
    accepted: list[float] = []
    statuses: Counter = Counter()
    free: deque[_Connection] = deque()

    async def one(content: bytes) -> None:
        # The one that was idle for longest, or the server might close it while this sends.
        connection = free.popleft() if free else _Connection(address)
        began = time.perf_counter()
        try:
            status, _ = await connection.post(f"/caption?max_length={MAX_LENGTH}", content)
        except (EOFError, OSError):
            statuses["none"] += 1
            connection.close()
            return
        statuses[status] += 1
        if status == 200:
            accepted.append(time.perf_counter() - began)
        free.append(connection)

    async def flood() -> None:
        nonlocal peak
        began, tasks = time.perf_counter(), set()
        for sent, content in enumerate(cycle(contents)):
            now = time.perf_counter() - began
            if now > length:
                break
            await asyncio.sleep(max(0.0, sent / rate - now))
            task = asyncio.ensure_future(one(content))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if sent % 100 == 0:
                peak = max(peak, _megabytes(pid))
        await asyncio.gather(*tasks)

    asyncio.run(flood())
    others = sum(count for status, count in statuses.items() if status not in (200, 429, 504))
    yield _row(name, "twice the capacity: requests a second", sum(statuses.values()) / length, "")
    for status in (200, 429, 504):
        yield _row(name, f"answers {status}", statuses[status], "")
    yield _row(name, "other answers", others, "0")
    yield _row(name, "p99 of accepted ones over p99 at 64 clients", np.percentile(accepted, 99) / p99, "<= 1.5")
    yield _row(name, "memory, MB more than before", peak - before, "<= 50")


def _megabytes(pid: int) -> float:
    """The memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


# --- Search


def _typing(place: Path, count: int) -> Iterator[dict[str, object]]:
    """The time of each request while texts are typed letter by letter."""
    location = place / "index"
    _fill(location, count)
    seconds: list[float] = []

    async def type_all(address: str) -> None:
        connection = _Connection(address)
        for text in ("warm up", *TYPED):
            for end in range(1, len(text) + 1):
                asked = json.dumps({"texts": [text[:end]], "limit": 60}).encode()
                began = time.perf_counter()
                status, _ = await connection.post("/search", asked)
                assert status == (200 if text[:end].strip() else 422)
                if text in TYPED:
                    seconds.append(time.perf_counter() - began)

    with _server(location) as (address, _):
        asyncio.run(type_all(address))
    what = f"a letter typed, {count:,} pictures"
    yield _row(DEFAULT, f"{what}: p50, ms", 1000 * np.percentile(seconds, 50), "")
    yield _row(DEFAULT, f"{what}: p95, ms", 1000 * np.percentile(seconds, 95), "<= 60" if count == INDEXED else "")


def _fill(location: Path, count: int) -> None:
    """An index with random embeddings and captions of the words that are typed and others."""
    model = IndexModel(DEFAULT)
    random = np.random.default_rng(0)
    words = [*{word for text in TYPED for word in text.split()}, *(f"word{number}" for number in range(2000))]
    store = make_store(str(location), model.header)
    for start in range(0, count, 10_000):
        vectors = random.standard_normal((min(10_000, count - start), model.header.embed_dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        chosen = random.choice(words, (len(vectors), 2))
        hashes = random.integers(-(2**62), 2**62, len(vectors))
        added = [
            (_entry(start + place, " ".join(chosen[place]), int(hashes[place])), vector)
            for place, vector in enumerate(vectors)
        ]
        store.commit(Changes(added=added))
    store.close()


def _entry(number: int, caption: str, phash: int) -> Entry:
    name = f"/pictures/folder-{number % 97}/{number}.png"
    return Entry(
        name=name,
        root="/pictures",
        file=name,
        offset=None,
        stamp=Stamp(1000 + number % 5000, 1_700_000_000_000_000_000 + number * 10**9),
        digest=f"{number:032x}",
        phash=phash,
        width=64,
        height=64,
        caption=caption,
    )


if __name__ == "__main__":
    main()
