"""Captions per second, side by side with open_clip's CoCa and with BLIP of transformers.

Random weights of equal sizes, fp32, the same images, the same number of new tokens, the end token ruled out. One
process each; only one computes at a time; the contestants take turns within each cell. open_clip captions with
transformers 4 only (before 4.56, where its beam search loses a class), so the others live in an environment of their
own, with the same torch:

    python -m venv peers
    peers/bin/pip install torch open_clip_torch==3.3.0 "transformers>=4.50,<4.56"
    python benchmarks/captioning.py --peer-python peers/bin/python

Writes `captioning.json` and `.png` in `benchmarks/results/`, anew after each cell, so that a run cut short
loses nothing; with --only, cells that the same machine measured before stay. On a quiet machine of two cores it takes
about 20 minutes, most of it open_clip's: a run of it that lasts longer than `--limit` seconds is stopped, which bounds
the ratio from below. `--precision int8` measures ours in ONNX Runtime and in int8 against the peers in fp32, and writes
`captioning-int8.json`; it makes the model in the folder `--models`, which takes minutes, and finds it there later.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines import graphs_of, random_checkpoint
from machine import machine, parse, parser_of, write
from plots import captioning_plot
from workers import TooLongError, Worker, WorkerError

RUNS = 3
SLOW = 15.0
"""Seconds; a contestant whose run takes longer runs once."""
NEVER = 86_400.0
"""Seconds that no run takes."""


@dataclass
class Cell:
    """What is decoded, who against whom, and the seconds that each run took."""

    method: str
    batch: int
    tokens: int
    peer: str
    goal: float
    """How many times as fast as the peer we mean to be."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    stopped: bool = False
    """The peer's run was stopped at the limit: the ratio is a lower bound."""

    @property
    def ratio(self) -> float | None:
        """Our captions per second in units of the peer's."""
        ours, peers = (self.seconds.get(name) for name in ("ours", self.peer))
        return statistics.median(peers) / statistics.median(ours) if ours and peers else None


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


def start_contestant(name: str, python: str, threads: int, **setup: object) -> Worker:
    """A process of `contestants.py`.

    Raises:
        WorkerError: it cannot be run, or lacks a package.
    """
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return Worker(name, "contestants.py", {"name": name, "threads": threads, **setup}, python, environment)


def measure(cell: Cell, contestants: Mapping[str, Worker], limit: float, runs: int = RUNS) -> None:
    """Let the contestants take turns; who is slow runs once.

    Raises:
        WorkerError: one ended. Its time would be counted as slowness.
    """
    for _ in range(runs):
        for name, contestant in contestants.items():
            times = cell.seconds.setdefault(name, [])
            if times and times[0] > SLOW:
                continue
            bound = NEVER if name == "ours" else limit  # we are never given up on: only a peer's bound counts
            try:
                answer = contestant.ask(bound, what="caption", method=cell.method, batch=cell.batch, tokens=cell.tokens)
            except TooLongError:
                cell.stopped = True
                times.append(limit)
                return
            times.append(answer["seconds"])


def smallest_cells() -> list[Cell]:
    """Each way of decoding, and each peer, once."""
    return [Cell(method, 1, 2, "open_clip", 1) for method in ("sampling", "beam")] + [Cell("greedy", 1, 2, "blip", 1)]


def growth(ours: Worker, batch: int = 8, runs: int = RUNS) -> dict[str, float]:
    """Milliseconds of a decoding step at length 5 and at length 60, medians over neighbouring steps and runs."""
    times = [ours.ask(NEVER, what="steps", batch=batch, tokens=64)["milliseconds"] for _ in range(runs)]
    at = {length: statistics.median(t for run in times for t in run[length - 3 : length + 3]) for length in (5, 60)}
    return {"batch": batch, "ms_at_5": at[5], "ms_at_60": at[60], "ratio": at[60] / at[5]}


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
    graphs = _graphs(options.models) if is_int8 else None

    def start(name: str) -> Worker:
        if name != "ours":
            return start_contestant(name, options.peer_python, options.threads)
        more = {"is_small": bool(options.smoke), "folder": str(graphs)}
        return start_contestant("quantized" if is_int8 else "ours", sys.executable, options.threads, **more)

    contestants = {"ours": start("ours")}
    for name in dict.fromkeys(cell.peer for cell in asked) if options.peer_python else ():
        try:
            contestants[name] = start(name)
        except WorkerError as error:
            print(f"{name} is not measured; see the top of {Path(__file__).name}\n{error}", file=sys.stderr)
    for batch in (1, 2):  # lays the weights out, once for a model
        contestants["ours"].ask(NEVER, what="caption", method="sampling", batch=batch, tokens=2)
    report: dict[str, Any] = {
        "machine": {**machine(), "threads": options.threads, "precision": options.precision},
        "contestants": {name: contestant.about for name, contestant in contestants.items()},
        "limit_s": options.limit,
        "step": growth(contestants["ours"], runs=runs),
    }
    name = "captioning" if options.precision == "fp32" else f"captioning-{options.precision}"
    if options.only:
        before = _take_previous(options.out / f"{name}.json", report["machine"], cells, asked)
        report["contestants"] = before | report["contestants"]
    for cell in asked:
        measure(cell, {who: contestants[who] for who in ("ours", cell.peer) if who in contestants}, options.limit, runs)
        print(f"{_name(cell)}, {cell.peer}: {cell.seconds}, {cell.ratio}", flush=True)
        if cell.stopped:
            contestants[cell.peer] = start(cell.peer)
        found = [{**asdict(each), "ratio": each.ratio} for each in cells]
        write(name, {**report, "cells": found}, options.out)
        if name == "captioning":
            captioning_plot(found, options.out / "captioning.png")
    for contestant in contestants.values():
        contestant.close()


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__, peers=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help="of ours; the peers are in fp32")
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
            cell.seconds, cell.stopped = found["seconds"], found["stopped"]
    return before["contestants"]


def _name(cell: Cell) -> str:
    return f"{cell.method}-{cell.batch}-{cell.tokens}"


if __name__ == "__main__":
    main()
