"""Captions per second, side by side with open_clip's CoCa and with BLIP of transformers.

Random weights of equal sizes, fp32, the same images, the same number of new tokens, the end token ruled out. One
process each; only one computes at a time; the contestants take turns within each cell. open_clip captions with
transformers 4 only (before 4.56, where its beam search loses a class), so the others live in an environment of their
own, with the same torch:

    python -m venv peers
    peers/bin/pip install torch open_clip_torch==3.3.0 "transformers>=4.50,<4.56"
    python benchmarks/captioning.py --peer-python peers/bin/python

Writes `benchmarks/results/captioning.json` and `.md`. On a quiet machine of two cores it takes about a quarter of an
hour, most of it open_clip's.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNS = 3
SLOW = 15.0
"""Seconds; a contestant whose run takes longer runs once."""


@dataclass
class Cell:
    """A row of the table: what is decoded, who against whom, and the seconds that each run took."""

    method: str
    batch: int
    tokens: int
    peer: str
    goal: float
    """How many times as fast as the peer we mean to be."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    stopped: bool = False
    """The peer's run was stopped at the limit: the ratio is a lower bound."""

    def median(self, name: str) -> float | None:
        """Seconds."""
        times = self.seconds.get(name)
        return statistics.median(times) if times else None

    @property
    def ratio(self) -> float | None:
        """Our captions per second in units of the peer's."""
        ours, peers = self.median("ours"), self.median(self.peer)
        return peers / ours if ours and peers else None


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


class Contestant:
    """A process that answers."""

    def __init__(self, name: str, python: str, threads: int) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, str(HERE / "contestants.py"), name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.about = self._read() or {"missing": f"{python} could not run it"}

    def ask(self, limit: float | None = None, **cell: Any) -> dict[str, Any] | None:
        """The answer, or None when it was stopped after `limit` seconds. A contestant that fails ends the run: its
        time would be counted as slowness."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(cell) + "\n")
        self.process.stdin.flush()
        stopped = threading.Event()
        timer = threading.Timer(limit or 0, lambda: (stopped.set(), self.process.kill()))
        if limit:
            timer.start()
        answer = self._read()
        timer.cancel()
        if answer is None and not stopped.is_set():
            sys.exit(f"{self.name} failed at {cell}: run {Path(__file__).with_name('contestants.py').name} by hand")
        return answer

    def _read(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def measure(cell: Cell, contestants: Sequence[Contestant], limit: float) -> None:
    """Let the contestants take turns; who is slow runs once."""
    for _ in range(RUNS):
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
            times.append(answer["seconds"])


def growth(ours: Contestant, batch: int = 8) -> dict[str, float]:
    """Milliseconds of a decoding step at length 5 and at length 60, medians over neighbouring steps and runs."""
    runs = [ours.ask(method="steps", batch=batch, tokens=64) for _ in range(RUNS)]
    times = [run["milliseconds"] for run in runs if run]
    at = {length: statistics.median(t for run in times for t in run[length - 3 : length + 3]) for length in (5, 60)}
    return {"batch": batch, "ms_at_5": at[5], "ms_at_60": at[60], "ratio": at[60] / at[5]}


def machine(threads: int) -> dict[str, Any]:
    """What it was measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "python": platform.python_version()}


def table(report: dict[str, Any], cells: Sequence[Cell]) -> str:
    """Markdown."""
    about = report["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; random weights, fp32; medians.",
        "",
        *(f"- {name}: {_describe(contestant)}" for name, contestant in report["contestants"].items()),
        "",
        "| decoding | batch | tokens | captions/s | peer | its captions/s | ratio | goal | runs (ours, peer) |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(cell) for cell in cells),
        "",
    ]
    steps = report["step"]
    lines.append(
        f"One step at batch {steps['batch']}: {steps['ms_at_5']:.1f} ms at length 5, {steps['ms_at_60']:.1f} ms at "
        f"length 60, {steps['ratio']:.2f} × (goal: at most 1.15 ×)."
    )
    if any(cell.stopped for cell in cells):
        lines.append(f"\n≥: the peer was stopped after {report['limit_s']:.0f} s, which counts as its time.")
    return "\n".join(lines) + "\n"


def _describe(contestant: dict[str, Any]) -> str:
    if "missing" in contestant:
        return f"not measured ({contestant['missing']})"
    versions = ", ".join(f"{name} {version}" for name, version in contestant["versions"].items())
    return f"{contestant['parameters'] / 1e6:.1f} M parameters; {versions}"


def _row(cell: Cell) -> str:
    ours, peer = cell.median("ours"), cell.median(cell.peer)
    speed = [f"{cell.batch / seconds:.3g}" if seconds else "–" for seconds in (ours, peer)]
    bound = "≥ " if cell.stopped else ""
    ratio = f"{bound}{cell.ratio:.1f} ×" if cell.ratio else "–"
    runs = ", ".join(str(len(cell.seconds.get(name, []))) for name in ("ours", cell.peer))
    goal = f"{cell.goal:g} ×"
    return (
        f"| {cell.method} | {cell.batch} | {cell.tokens} | {speed[0]} | {cell.peer} | {speed[1]} | {ratio} "
        f"| {goal} | {runs} |"
    )


def main() -> None:
    """Measure all cells, or those asked for, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=330, help="seconds after which a run is stopped")
    parser.add_argument("--only", default="", help="cells to run, e.g. sampling-8-20,beam-8-20")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()

    cells = [cell for cell in all_cells() if not options.only or _name(cell) in options.only.split(",")]
    pythons = {"ours": sys.executable, "open_clip": options.peer_python, "blip": options.peer_python}
    contestants = {name: Contestant(name, python, options.threads) for name, python in pythons.items()}
    abouts = {name: contestant.about for name, contestant in contestants.items()}
    for name, about in abouts.items():
        if "missing" in about:
            print(f"{name} is not measured: {about['missing']}; see the top of {Path(__file__).name}", file=sys.stderr)
    if "missing" in abouts["ours"]:
        sys.exit(2)
    contestants["ours"].ask(method="sampling", batch=1, tokens=2)  # packs the weights, once for a model

    for cell in cells:
        present = [contestants[name] for name in ("ours", cell.peer) if "missing" not in abouts[name]]
        measure(cell, present, options.limit)
        print(_row(cell), flush=True)
        if cell.stopped:
            contestants[cell.peer].close()
            contestants[cell.peer] = Contestant(cell.peer, options.peer_python, options.threads)
    report = {
        "machine": machine(options.threads),
        "contestants": abouts,
        "limit_s": options.limit,
        "step": growth(contestants["ours"]),
        "cells": [{**asdict(cell), "ratio": cell.ratio} for cell in cells],
    }
    for contestant in contestants.values():
        contestant.close()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "captioning.json").write_text(json.dumps(report, indent=2) + "\n")
    text = table(report, cells)
    (options.out / "captioning.md").write_text(text)
    print("\n" + text)


def _name(cell: Cell) -> str:
    return f"{cell.method}-{cell.batch}-{cell.tokens}"


if __name__ == "__main__":
    main()
