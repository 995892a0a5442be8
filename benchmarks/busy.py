"""What a busy neighbour costs: `grr-coca caption` and `grr-coca index` beside a process that keeps one core busy.

    python benchmarks/busy.py

Runs each verb on a folder of pictures, quiet and beside the neighbour in turns, with ONNX Runtime and with PyTorch, on
as many threads as each takes by itself. What counts is time on the clock: the machine must be idle otherwise. Writes
`results/busy.json`. Ten minutes on two cores.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from machine import parse, parser_of, report
from search_index import of_code

PICTURES = 800
ROUNDS = 5
ENGINES = ("onnx", "torch")
SPIN = "while True: pass"


def main() -> None:
    """Measure, and write the report."""
    options = parse(parser_of(__doc__))
    pictures, rounds = (4, 1) if options.smoke else (PICTURES, ROUNDS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "pictures")
        folder.mkdir()
        for number, content in zip(range(pictures), of_code(), strict=False):
            (folder / f"{number:04}.webp").write_bytes(content)
        rows = [
            _row(verb, engine, pictures, commands) for verb, engine, commands in _commands(folder, Path(place), rounds)
        ]
    report("busy", rows, options.out)


def _commands(folder: Path, place: Path, rounds: int) -> Iterator[tuple[str, str, list[list[str]]]]:
    """Each verb with each engine, and a command for each time that it runs. An index is new each time."""
    program = [sys.executable, "-m", "grr_coca"]
    for engine in ENGINES:
        caption = [*program, "caption", str(folder), "--engine", engine]
        yield "caption", engine, [caption] * (2 * rounds)
        indexes = [str(place / f"index-{engine}-{number}") for number in range(2 * rounds)]
        yield "index", engine, [[*program, "index", str(folder), "--out", out, "--engine", engine] for out in indexes]


def _row(verb: str, engine: str, pictures: int, commands: Sequence[list[str]]) -> dict[str, object]:
    quiet, beside = [], []
    for number, command in enumerate(commands):
        if number % 2:
            with _neighbour():
                beside.append(_seconds(command))
        else:
            quiet.append(_seconds(command))
    ratios = [alone / shared for alone, shared in zip(quiet, beside, strict=True)]
    return {
        "verb": verb,
        "engine": engine,
        "pictures": pictures,
        "quiet_per_second": round(pictures / statistics.median(quiet), 1),
        "busy_per_second": round(pictures / statistics.median(beside), 1),
        "kept": round(statistics.median(ratios), 2),
        "goal": 0.45,
    }


def _seconds(command: list[str]) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


@contextmanager
def _neighbour() -> Iterator[None]:
    """Another process computes, wherever the system puts it."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
