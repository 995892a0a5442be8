"""Decoding in helper programs against another version: `python benchmarks/decoding.py --before PYTHON`.

PYTHON is the interpreter of a checkout of the other version, such as one that decodes in its own process. Both versions
work in turns on the same pictures: a server with 16 clients, on small PNG files and on a photograph of 12 megapixels;
`grr-coca index` of 1,000 drawings; a training loader with one worker for each core; and `grr-coca caption` of one
picture. The median of the ratios of all rounds counts, with its interval of 95 %. The machine must be idle otherwise.
"""

import http.client
import io
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from harness import Answer, Worker, in_turn, parse, parser_of, pictures, report, seconds, serve

ROUNDS, CLIENTS, DRAWINGS = 24, 16, 1000
BATCH, BATCHES, PREPARED = 32, 24, 8
"""Pictures of a batch of the loader, batches of a round, and batches that its workers prepare ahead."""
KINDS = ("png", "jpeg", "webp")
PARTS = ("http", "index", "loader", "command")
TARGETS = {"http": ">= 0.9", "index": ">= 0.97", "loader": ">= 0.97"}


def main() -> None:
    """Measure, and write the report."""
    parser = parser_of(__doc__, only=PARTS)
    parser.add_argument("--before", default=sys.executable, help="interpreter of the other version")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of both versions")
    parser.add_argument("--images", type=Path, help="index this folder, such as one of SVG files")
    options = parse(parser)
    pythons = {"before": options.before, "now": sys.executable}
    num, rounds = (8, 1) if options.smoke else (DRAWINGS, options.rounds)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        drawings = list(islice(cycle(pictures()), num))
        for part in ["command"] if options.smoke else options.only:
            images = {"images": options.images} if part == "index" else {}
            for what, sides in globals()[f"of_{part}"](pythons, drawings, Path(place), **images):
                rows.append(_row(part, what, in_turn(sides, rounds)))
                print(rows[-1], flush=True)  # measuring takes long, and may be stopped
    report("decoding", rows, options.out)


def _row(part: str, what: str, found: dict[str, list[float]]) -> dict[str, object]:
    before, now = (np.array(found[side]) for side in ("before", "now"))
    if part == "command":
        values, target, scale = (now - before) * 1000, "<= 20 ms more", 1
    else:
        values, target, scale = before / now, TARGETS[part], 3
    # The interval of the median, by order statistics.
    ordered, reach = np.sort(values), math.ceil(0.98 * math.sqrt(len(values)))
    middle = len(values) // 2
    low, high = ordered[max(0, middle - reach)], ordered[min(len(values) - 1, middle + reach)]
    return {
        "what": f"{part}: {what}",
        "before, s": round(float(np.median(before)), 3),
        "now, s": round(float(np.median(now)), 3),
        "now to before": round(float(np.median(values)), scale),
        "interval": f"{low:.{scale}f} to {high:.{scale}f}",
        "target": target,
    }


Sides = dict[str, Callable[[], float]]
Parts = Iterator[tuple[str, Sides]]


def of_http(pythons: dict[str, str], drawings: list[bytes], place: Path) -> Parts:  # noqa: ARG001
    """Servers with 16 clients."""
    with _server(pythons["before"]) as before, _server(pythons["now"]) as now:
        for what, bodies in (("small PNG", _encoded(drawings[:64], "png") * 2), ("12 MP", [_photograph()] * 16)):
            sides = {"before": _asked(before, bodies), "now": _asked(now, bodies)}
            for side in sides.values():
                side()
            yield what, sides


@contextmanager
def _server(python: str) -> Iterator[tuple[str, int]]:
    command = [python, "-m", "grr_coca", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        url = urlsplit(address[0])
        assert url.hostname is not None
        assert url.port is not None
        while _status(url.hostname, url.port) != 200:
            time.sleep(0.1)
        yield url.hostname, url.port
        server.terminate()


def _status(host: str, port: int) -> int:
    connection = http.client.HTTPConnection(host, port)
    connection.request("GET", "/ready")
    return connection.getresponse().status


def _asked(place: tuple[str, int], bodies: list[bytes]) -> Callable[[], float]:
    def client(own: list[bytes]) -> None:
        connection = http.client.HTTPConnection(*place)
        for body in own:
            connection.request("POST", "/caption", body, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()

    def work() -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client, (bodies[number::CLIENTS] for number in range(CLIENTS))))

    return lambda: seconds(work)


def of_index(pythons: dict[str, str], drawings: list[bytes], place: Path, images: Path | None) -> Parts:
    """`grr-coca index` of drawings, as they are, or of other images."""
    folder, what = place / "indexed", f"{len(drawings):,} drawings"
    folder.mkdir()
    for number, drawing in enumerate(drawings):
        (folder / f"{number}.webp").write_bytes(drawing)
    if images is not None:
        folder, what = images.absolute(), f"{sum(1 for _ in images.iterdir()):,} images"
    yield what, _commands(pythons, lambda number: ["index", str(folder), "--out", str(number)], place)


def of_command(pythons: dict[str, str], drawings: list[bytes], place: Path) -> Parts:
    """`grr-coca caption` of one picture."""
    picture = _folder(place / "one", drawings[:1], "png") / "0.png"
    yield "one picture", _commands(pythons, lambda _: ["caption", str(picture)], place)


def _commands(pythons: dict[str, str], arguments: Callable[[int], list[str]], place: Path) -> Sides:
    numbers = count()

    def run(python: str) -> float:
        command = [python, "-m", "grr_coca", *arguments(next(numbers))]
        return seconds(lambda: subprocess.run(command, check=True, capture_output=True, cwd=place))

    return {name: (lambda python=python: run(python)) for name, python in pythons.items()}


def of_loader(pythons: dict[str, str], drawings: list[bytes], place: Path) -> Parts:
    """Yield the measurements of a training loader, whose workers decode each image."""
    for kind in KINDS:
        folder = _folder(place / f"loaded-{kind}", drawings[: len(drawings) // 2], kind)
        workers = {
            name: Worker("decoding.py", {"name": name, "threads": 1, "folder": str(folder)}, python)
            for name, python in pythons.items()
        }
        yield kind, {name: (lambda worker=worker: worker.ask("load")["seconds"]) for name, worker in workers.items()}
        for worker in workers.values():
            worker.close()


class Loader:
    """A side of `of_loader`, in its process, with two workers that stay."""

    def __init__(self, setup: Answer) -> None:
        import grr_coca
        from grr_coca.data import dataset
        from grr_coca.data.augmentation import Augmentation
        from grr_coca.data.order import SampleRef
        from grr_coca.data.sources.open import open_source

        try:
            from grr_coca.data.loader import make_loader
        except ImportError:
            make_loader = dataset.make_loader
        dataset._MAX_CACHED_PIXELS = 0
        model = grr_coca.load("icons")
        pairs = dataset.PairDataset(
            open_source(setup["folder"]),
            model.tokenizer,
            model.preprocess,
            40,
            augmentation=Augmentation(scale=(0.8, 1.2)),
        )
        order = (  # without an end
            [SampleRef(epoch, sample) for sample in range(first, first + BATCH)]
            for epoch in count()
            for first in range(0, len(pairs) - BATCH + 1, BATCH)
        )
        self._batches = iter(make_loader(pairs, order, 2))
        self._take(1)
        self.about = {"name": setup["name"]}

    def load(self) -> Answer:
        """Load batches, after those that the workers have prepared, and let them prepare the next."""
        self._take(PREPARED)
        took = seconds(lambda: self._take(BATCHES))
        time.sleep(0.3)
        return {"seconds": took}

    def _take(self, number: int) -> None:
        for _ in range(number):
            next(self._batches)


def _encoded(drawings: list[bytes], kind: str) -> list[bytes]:
    from PIL import Image

    found = []
    for drawing in drawings:
        file = io.BytesIO()
        Image.open(io.BytesIO(drawing)).convert("RGB").resize((256, 256)).save(file, kind)
        found.append(file.getvalue())
    return found


def _photograph() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    rough = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(rough).resize((4000, 3000), Image.Resampling.BICUBIC).save(file, "JPEG", quality=88)
    return file.getvalue()


def _folder(folder: Path, drawings: list[bytes], kind: str) -> Path:
    folder.mkdir()
    for number, content in enumerate(_encoded(drawings, kind)):
        (folder / f"{number}.{kind}").write_bytes(content)
        (folder / f"{number}.txt").write_text(f"a drawing, number {number}")
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):
        serve(Loader, ["load"])
    else:
        main()
