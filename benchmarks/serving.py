"""What serving costs: `grr-coca serve` beside `grr-coca caption`, and what it does with twice as much as it can do.

    python benchmarks/serving.py [--only icons,b32]

Two parts, with a server in a process of its own, and a client in another one:

- captions a second at 64 clients, over those of `grr-coca caption` on the same files, without its start; in turns;
- for a minute, twice as many requests as the server can answer.

The machine must be idle otherwise. Run it by `make bench-serving`: with OMP_WAIT_POLICY=PASSIVE threads of PyTorch wait
here as they do in the server. `b32` is a preset of that size with random weights: its captions have 20 tokens, and its
speed is that of a trained one. Writes `results/serving.json`. Ten minutes on two cores.
"""

import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from engines import random_checkpoint
from harness import in_turn, parse, parser_of, pictures, ratio, report, seconds

from grr_coca.model.checkpoint_files import DEFAULT, bundled_folder

CLIENTS = 64
FILES = {DEFAULT: 3000, "b32": 200}
ROUNDS = 3
"""Turns of `grr-coca caption` and of the clients; medians count."""
MAX_LENGTH = 20
"""Tokens of a caption. With random weights, captions do not end before."""
OVERLOAD_SECONDS = 60.0
SMOKE = {"files": 40, "overload": 2.0, "clients": 8}


def main() -> None:
    """Measure, and write the report."""
    options = parse(parser_of(__doc__, only=list(FILES)))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        for name in [DEFAULT] if options.smoke else options.only:
            rows += _of_model(name, Path(place), smoke=bool(options.smoke))
    report("serving", rows, options.out)


def _row(model: str, what: str, value: float, goal: str) -> dict[str, object]:
    return {"model": model, "measured": what, "value": round(value, 3), "goal": goal}


def _of_model(name: str, place: Path, *, smoke: bool) -> Iterator[dict[str, object]]:
    folder = bundled_folder(name) or random_checkpoint(name, place)
    count, clients = (SMOKE["files"], SMOKE["clients"]) if smoke else (FILES[name], CLIENTS)
    files = place / f"{name}-pictures"
    files.mkdir()
    contents = list(islice(cycle(pictures()), count))
    for number, content in enumerate(contents):
        (files / f"{number:05}.webp").write_bytes(content)
    waited: list[float] = []

    def served() -> float:
        found, statuses, took = asyncio.run(_closed_loop(address, contents, clients))
        assert set(statuses) == {200}, statuses
        waited.extend(found)
        return took

    with _server("-c", folder, "--queue", CLIENTS) as (address, pid):
        times = in_turn({"by hand": partial(_captioning, folder, files), "served": served}, 1 if smoke else ROUNDS)
        rate, by_hand = (count / statistics.median(times[side]) for side in ("served", "by hand"))
        p50, p99 = np.percentile(waited, (50, 99))
        goals = (">= 0.7", "<= 5") if name == DEFAULT else ("", "")
        yield _row(name, "grr-coca caption: captions a second", by_hand, "")
        yield _row(name, f"{clients} clients: captions a second", rate, "")
        yield _row(name, "ratio", ratio(times["by hand"], times["served"]), goals[0])
        yield _row(name, "p50, ms", 1000 * p50, "")
        yield _row(name, "p99 / p50", p99 / p50, goals[1])
        length = SMOKE["overload"] if smoke else OVERLOAD_SECONDS
        yield from _overload(name, address, pid, contents, 2 * rate, length, p99)


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


def _captioning(folder: Path, files: Path) -> float:
    """Return seconds of `grr-coca caption` for all files, without its start."""

    def of(images: Path) -> float:
        command = [sys.executable, "-m", "grr_coca", "caption", str(images), "-c", str(folder), "--json"]
        more = ["--max-length", str(MAX_LENGTH)]
        return seconds(partial(subprocess.run, [*command, *more], check=True, capture_output=True))

    start = of(min(files.iterdir()))
    return of(files) - start


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
    """Return the memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
