"""Captions per second, side by side with open_clip's CoCa and with BLIP of transformers.

Random weights of equal sizes, fp32, the same images, the same number of new tokens, the end token ruled out. One
process each; only one computes at a time; the contestants take turns within each cell. open_clip captions with
transformers 4 only (before 4.56, where its beam search loses a class), so the others live in an environment of their
own, with the same torch:

    python -m venv peers
    peers/bin/pip install torch open_clip_torch==3.3.0 "transformers>=4.50,<4.56"
    python benchmarks/captioning.py --peer-python peers/bin/python

Writes `captioning.json`, `.md` and `.png` in `benchmarks/results/`, anew after each cell, so that a run cut short
loses nothing; with --only, cells that the same machine measured before stay. On a quiet machine of two cores it takes
about 20 minutes, most of it open_clip's: a run of it that lasts longer than `--limit` seconds is stopped, which bounds
the ratio from below. `--precision bf16` casts the weights and images of every contestant, and writes
`captioning-bf16.*`. `--precision int8` measures ours in ONNX Runtime and in int8 against the peers in fp32, and writes
`captioning-int8.*`; it makes the model in the folder `--models`, which takes minutes, and finds it there later.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captioning_report import Cell, plot, row, table
from contestants import SMALL
from engines import graphs_of, random_checkpoint
from machine import parse, parser_of

HERE = Path(__file__).parent
RUNS = 3
SLOW = 15.0
"""Seconds; a contestant whose run takes longer runs once."""


def all_cells() -> list[Cell]:
    """The slowest last, since a stopped contestant must start anew."""
    return [
        Cell("sampling", 1, 20, "open_clip", 4),
        Cell("sampling", 8, 20, "open_clip", 8),
        Cell("sampling", 32, 20, "open_clip", 10),
        Cell("sampling", 1, 60, "open_clip", 10),
        *(Cell("greedy", batch, tokens, "blip", 1) for tokens in (20, 60) for batch in (1, 8, 32)),
        Cell("sampling", 8, 60, "open_clip", 20),
        Cell("beam", 8, 20, "open_clip", 12),
        Cell("sampling", 32, 60, "open_clip", 25),
        Cell("beam", 8, 60, "open_clip", 50),
    ]


def int8_cells() -> list[Cell]:
    """Those of int8, with aims of their own."""
    return [
        *(Cell("greedy", batch, 20, "blip", 2.5) for batch in (1, 8)),
        Cell("sampling", 1, 20, "open_clip", 8),
        Cell("sampling", 8, 20, "open_clip", 12),
        Cell("sampling", 32, 20, "open_clip", 15),
        Cell("sampling", 1, 60, "open_clip", 12),
        Cell("sampling", 8, 60, "open_clip", 20),
        Cell("beam", 8, 20, "open_clip", 35),
        Cell("sampling", 32, 60, "open_clip", 30),
    ]


class Contestant:
    """A process that answers."""

    def __init__(self, name: str, python: str, threads: int, precision: str, *more: str) -> None:
        self.name = name
        program = "quantized" if precision == "int8" else name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, str(HERE / "contestants.py"), program, str(threads), precision, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.stopped = False
        self.about = self._read() or {"missing": f"{python} could not run it"}

    def ask(self, limit: float | None = None, **cell: Any) -> dict[str, Any] | None:
        """The answer, or None when it was stopped after `limit` seconds. A contestant that dies ends the run: its
        time would be counted as slowness."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(cell) + "\n")
        self.process.stdin.flush()
        timer = threading.Timer(limit or 0, self._stop)
        if limit:
            timer.start()
        answer = self._read()
        timer.cancel()
        if answer is None and not self.stopped:
            sys.exit(f"{self.name} failed at {cell}: run {Path(__file__).with_name('contestants.py').name} by hand")
        return answer

    def _stop(self) -> None:
        self.stopped = True
        self.process.kill()

    def _read(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def measure(cell: Cell, contestants: Sequence[Contestant], limit: float, runs: int = RUNS) -> None:
    """Let the contestants take turns; who is slow runs once."""
    for _ in range(runs):
        for contestant in contestants:
            times = cell.seconds.setdefault(contestant.name, [])
            if times and times[0] > SLOW:
                continue
            bound = None if contestant.name == "ours" else limit  # we are never given up on: only a peer's bound counts
            answer = contestant.ask(bound, method=cell.method, batch=cell.batch, tokens=cell.tokens)
            if answer is None:
                cell.stopped = True
                times.append(limit)
                return
            if "failed" in answer:
                cell.failed = f"{contestant.name}: {answer['failed']}"
                return
            times.append(answer["seconds"])


def smallest_cells() -> list[Cell]:
    """Each way of decoding, and each peer, once."""
    return [Cell(method, 1, 2, "open_clip", 1) for method in ("sampling", "beam")] + [Cell("greedy", 1, 2, "blip", 1)]


def growth(ours: Contestant, batch: int = 8, runs: int = RUNS) -> dict[str, float]:
    """Milliseconds of a decoding step at length 5 and at length 60, medians over neighbouring steps and runs."""
    answers = [ours.ask(method="steps", batch=batch, tokens=64) for _ in range(runs)]
    times = [answer["milliseconds"] for answer in answers if answer]
    at = {length: statistics.median(t for run in times for t in run[length - 3 : length + 3]) for length in (5, 60)}
    return {"batch": batch, "ms_at_5": at[5], "ms_at_60": at[60], "ratio": at[60] / at[5]}


def machine(threads: int, precision: str) -> dict[str, Any]:
    """What it was measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "precision": precision,
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure all cells, or those asked for, and write the report."""
    options = _options()
    is_int8 = options.precision == "int8"
    cells = smallest_cells() if options.smoke else int8_cells() if is_int8 else all_cells()
    runs = 1 if options.smoke else RUNS
    if unknown := set(filter(None, options.only.split(","))) - set(map(_name, cells)):
        sys.exit(
            f"--only: no cell {', '.join(sorted(unknown))}; there are {', '.join(dict.fromkeys(map(_name, cells)))}"
        )
    asked = [cell for cell in cells if not options.only or _name(cell) in options.only.split(",")]
    pythons = {"ours": sys.executable, "open_clip": options.peer_python, "blip": options.peer_python}

    graphs = _graphs(options.models) if is_int8 else None

    def start(name: str) -> Contestant:
        more = [str(graphs)] if graphs and name == "ours" else [SMALL] if options.smoke else []
        precision = "fp32" if is_int8 and name != "ours" else options.precision
        return Contestant(name, pythons[name], options.threads, precision, *more)

    peers = dict.fromkeys(cell.peer for cell in asked) if options.peer_python else ()
    contestants = {name: start(name) for name in ("ours", *peers)}
    abouts = {name: contestant.about for name, contestant in contestants.items()}
    for name, about in abouts.items():
        if "missing" in about:
            print(f"{name} is not measured: {about['missing']}; see the top of {Path(__file__).name}", file=sys.stderr)
    if "missing" in abouts["ours"]:
        sys.exit(2)
    for batch in (1, 2):  # lays the weights out, once for a model
        contestants["ours"].ask(method="sampling", batch=batch, tokens=2)
    where = machine(options.threads, options.precision)
    report = {
        "machine": where,
        "contestants": abouts,
        "limit_s": options.limit,
        "step": growth(contestants["ours"], runs=runs),
    }
    name = "captioning" if options.precision == "fp32" else f"captioning-{options.precision}"
    if options.only:
        report["contestants"] = _take_previous(options.out / f"{name}.json", where, cells, asked) | abouts
    for cell in asked:
        if cell.peer in contestants and contestants[cell.peer].stopped:
            contestants[cell.peer] = start(cell.peer)
        both = [contestants[name] for name in ("ours", cell.peer) if name in contestants]
        measure(cell, [contestant for contestant in both if "missing" not in contestant.about], options.limit, runs)
        print(row(cell), flush=True)
        _write(report, cells, options.out, name)
    for contestant in contestants.values():
        contestant.close()
    print("\n" + table(report, cells))


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__, peers=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "int8"), default="fp32", help="of all contestants; int8: of ours alone"
    )
    parser.add_argument("--models", type=Path, help="folder of the model in int8")
    parser.add_argument("--limit", type=float, default=400, help="seconds after which a peer's run is stopped")
    parser.add_argument("--only", default="", help="cells to run, e.g. sampling-8-20,beam-8-20")
    return parse(parser)


def _graphs(models: Path | None) -> Path:
    """The graphs of `b32` in int8, written if they are not there."""
    if models is None:
        sys.exit("--precision int8 needs --models FOLDER, which keeps the model")
    return graphs_of(random_checkpoint("b32", models), "int8", models / "b32-int8")


def _take_previous(
    path: Path, where: dict[str, Any], cells: Sequence[Cell], asked: Sequence[Cell]
) -> dict[str, dict[str, Any]]:
    """Fill in the cells that are not asked for, as this very machine measured them before; who was measured."""
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("machine") != where:
        return {}
    measured = {(cell["method"], cell["batch"], cell["tokens"], cell["peer"]): cell for cell in before["cells"]}
    for cell in cells:
        found = measured.get((cell.method, cell.batch, cell.tokens, cell.peer))
        if found and cell not in asked:
            cell.seconds, cell.stopped, cell.failed = found["seconds"], found["stopped"], found["failed"]
    return before["contestants"]


def _write(report: dict[str, Any], cells: Sequence[Cell], out: Path, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    whole = {**report, "cells": [{**asdict(cell), "ratio": cell.ratio} for cell in cells]}
    (out / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(table(report, cells), encoding="utf-8")
    plot(cells, out / f"{name}.png")


def _name(cell: Cell) -> str:
    return f"{cell.method}-{cell.batch}-{cell.tokens}"


if __name__ == "__main__":
    main()
