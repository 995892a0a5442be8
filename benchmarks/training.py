"""The training step beside open_clip, in eager mode and compiled, CoCa-pytorch and BLIP: `make bench-training`.

    python benchmarks/training.py --peer-python .venv-peers/bin/python [--only full-fp32,coco-bf16]

Each row has two processes, ours and a peer, that take turns, a step each; only one computes at a time. Medians of the
steps after the warm-up; compiling is not counted but reported. The ceiling of matrix products in the row's precision
is measured before and after its steps. Writes `results/training.json` and `.png`, anew after every row; with
--only, rows that the same machine measured before stay. On two cores all rows take more than an hour.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ceilings
from lengths import batch_lengths
from machine import has_amx, machine, parse, parser_of
from machine import write as write_json
from plots import training_plot
from sizes import SMALLEST
from workers import Worker, WorkerError

SCRIPT = "training_contestants.py"
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
SMOKE = "full-fp32,full-fp32-compiled,coca_pytorch-fp32,blip-bf16"
"""Rows of the smallest form: one of each peer; without the peers, the first alone."""
WARM_UP = 2
"""Steps before the measured ones. In the first, sides that are compiled compile, and the others take their memory."""
OTHER_QUANTILES = 0.3
"""The first step has captions of other lengths, so that nothing is compiled for the measured ones alone."""
BATCH = 32
STEPS = 5
"""Measured steps of each side."""
LIMIT = 600.0
"""Seconds after which a step is given up."""
SMALLER = 4
"""CoCa-pytorch and BLIP are measured at a batch so many times smaller: the figures to reach are open_clip's."""


@dataclass
class Side:
    """One of the two."""

    about: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    """The first step, with compiling."""
    peak_bytes: int | None = None
    flops: int | None = None
    error: str | None = None

    @property
    def median(self) -> float | None:
        """Seconds a step."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass
class Row:
    """What is trained on, in which precision, against whom, and what came of it."""

    name: str
    lengths: str
    precision: str
    batch: int
    peer: str = "open_clip"
    goal: float | None = None
    """How many times as fast as the peer we mean to be."""
    mfu_goal: float | None = None
    memory_goal: float | None = None
    environment: dict[str, str] = field(default_factory=dict)
    gradient_checkpointing: float = 0.0
    """Ours: how much of what blocks would keep for the backward pass is computed again."""
    sides: dict[str, Side] = field(default_factory=dict)
    gemm: list[dict[str, float]] = field(default_factory=list)
    """FLOP/s of matrix products by shape, before and after the steps."""
    when: str = ""

    @property
    def ceiling(self) -> float:
        """FLOP/s: the best that was measured."""
        return max(rate for rates in self.gemm for rate in rates.values())

    def summary(self) -> dict[str, Any]:
        """For JSON: what was measured, and what follows from it."""
        results = {}
        for name, side in self.sides.items():
            median = side.median
            rate = side.flops / median if side.flops and median else None
            results[name] = {
                **asdict(side),
                "median": median,
                "images_per_second": self.batch / median if median else None,
                "flops_per_second": rate,
                "mfu": rate / self.ceiling if rate else None,
            }
        ours, peer = (self.sides.get(name, Side()) for name in ("ours", self.peer))
        ratios = {
            "speed": peer.median / ours.median if ours.median and peer.median else None,
            "memory": ours.peak_bytes / peer.peak_bytes if ours.peak_bytes and peer.peak_bytes else None,
            "flops": ours.flops / peer.flops if ours.flops and peer.flops else None,
        }
        return {**asdict(self), "sides": results, "ratios": ratios, "ceiling": self.ceiling}


def all_rows(batch: int) -> list[Row]:
    """Those with an aim first."""
    lean = {"goal": 1.35, "memory_goal": 0.6, "gradient_checkpointing": 0.75}
    rows = [
        Row("full-fp32", "full", "fp32", batch, goal=1.35, mfu_goal=0.8, memory_goal=0.6),
        Row("full-fp32-lean", "full", "fp32", batch, **lean),
        Row("full-bf16", "full", "bf16", batch, goal=1.35, mfu_goal=0.7),
        Row("full-bf16-lean", "full", "bf16", batch, **lean),
        Row("cc12m-fp32", "cc12m", "fp32", batch, goal=1.9),
        Row("cc12m-bf16", "cc12m", "bf16", batch, goal=1.9),
        Row("coco-fp32", "coco", "fp32", batch, goal=2.3),
        Row("coco-bf16", "coco", "bf16", batch, goal=2.3),
        Row("demo-fp32", "demo", "fp32", batch),
    ]
    rows += [
        Row(f"{lengths}-{precision}-compiled", lengths, precision, batch, "open_clip_compiled")
        for lengths in ("full", "cc12m", "coco")
        for precision in ("fp32", "bf16")
    ]
    if has_amx():
        rows.append(Row("full-bf16-without-amx", "full", "bf16", batch, environment=WITHOUT_AMX))
    smaller = max(2, batch // SMALLER)
    for peer in ("coca_pytorch", "blip"):
        rows += [Row(f"{peer}-{precision}", "full", precision, smaller, peer) for precision in ("fp32", "bf16")]
    return rows


class Benchmark:
    """The rows of one call, with what they share."""

    def __init__(self, options: argparse.Namespace, cache: str) -> None:
        self.options = options
        self.cache = cache
        self.counted: dict[tuple, int] = {}
        """FLOPs by contestant, batch and lengths: precision does not change them."""

    def measure(self, row: Row) -> None:
        """Fill in a row; a side that fails says so, and the other one goes on alone."""
        threads = self.options.threads
        with ceilings.start(threads, row.environment, bool(self.options.smoke)) as probe:
            row.gemm.append(probe.ask(LIMIT, what="gemm", precision=row.precision))
            workers = {name: self._start(row, name) for name in (row.peer, "ours")}
            workers = {name: worker for name, worker in workers.items() if worker is not None}
            self._take_turns(row, workers)
            row.gemm.append(probe.ask(LIMIT, what="gemm", precision=row.precision))
        row.when = datetime.now(UTC).isoformat(timespec="minutes")

    def _start(self, row: Row, name: str) -> Worker | None:
        side = row.sides.setdefault(name, Side())
        if name != "ours" and self.options.peer_python is None:
            return None
        setup = {
            "name": name,
            "threads": self.options.threads,
            "precision": row.precision,
            "compile": not self.options.smoke,
            "gradient_checkpointing": row.gradient_checkpointing,
        }
        if self.options.smoke:
            setup["size"] = SMALLEST
        environment = {
            "OMP_NUM_THREADS": str(self.options.threads),
            "TOKENIZERS_PARALLELISM": "false",
            # Compiled anew in every call, and once in it for all rows of a precision.
            "TORCHINDUCTOR_CACHE_DIR": self.cache,
            **row.environment,
        }
        python = sys.executable if name == "ours" else self.options.peer_python
        try:
            worker = Worker(name, SCRIPT, setup, python, environment)
        except WorkerError as error:
            self._fail(row, name, error)
            return None
        side.about = worker.about
        return worker

    def _take_turns(self, row: Row, workers: dict[str, Worker]) -> None:
        measured = [partial(self._measure, number=number) for number in range(self.options.steps)]
        for turn in (self._warm_up, *measured, self._end):
            for name, worker in list(workers.items()):
                try:
                    turn(row, worker)
                except WorkerError as error:
                    self._fail(row, name, error)
                    workers.pop(name).close()
        for worker in workers.values():
            worker.close()

    def _fail(self, row: Row, name: str, error: WorkerError) -> None:
        row.sides[name].error = str(error)
        print(f"{row.name}: {name} failed\n{error}", file=sys.stderr, flush=True)

    def _warm_up(self, row: Row, worker: Worker) -> None:
        side = row.sides[worker.name]
        for number in range(WARM_UP):
            answer = self._step(row, worker, number, 0.5 if number else OTHER_QUANTILES)
            side.first_seconds = side.first_seconds or answer["seconds"]
            print(f"  {worker.name} warm-up {answer['seconds']:.1f} s, loss {answer['loss']:.2f}", flush=True)
        worker.ask(LIMIT, what="forget")

    def _measure(self, row: Row, worker: Worker, number: int) -> None:
        row.sides[worker.name].seconds.append(self._step(row, worker, number)["seconds"])

    def _step(self, row: Row, worker: Worker, number: int, offset: float = 0.5) -> dict[str, Any]:
        lengths = batch_lengths(row.lengths, row.batch, number, offset)
        return worker.ask(LIMIT, what="step", lengths=lengths, seed=number)

    def _end(self, row: Row, worker: Worker) -> None:
        side = row.sides[worker.name]
        side.peak_bytes = worker.ask(LIMIT, what="peak")["bytes"]
        always_full = worker.about["padding"].startswith("always")
        key = (worker.name, row.batch, "full" if always_full else row.lengths)
        if key not in self.counted:
            lengths = batch_lengths(row.lengths, row.batch, 0)
            self.counted[key] = worker.ask(LIMIT, what="flops", lengths=lengths, seed=0)["flops"]
        side.flops = self.counted[key]


def previous(path: Path, threads: int) -> dict[str, Any]:
    """Rows that this very machine measured before with as many threads, by name."""
    if not path.exists():
        return {}
    report = json.loads(path.read_text())
    return report["rows"] if (report["machine"], report["threads"]) == (machine(), threads) else {}


def write(report: dict[str, Any], out: Path) -> None:
    """JSON and plot."""
    write_json("training", report, out)
    training_plot(report, out / "training.png")


def main() -> None:
    """Measure all rows, or those asked for."""
    parser = parser_of(__doc__, peers=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="rows to measure, e.g. full-fp32,coco-bf16")
    options = parse(parser)
    options.batch, options.steps = (2, 1) if options.smoke else (BATCH, STEPS)
    rows = all_rows(options.batch)
    unknown = set(filter(None, options.only.split(","))) - {row.name for row in rows}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in rows)}")
    order = [row.name for row in rows]
    smallest = SMOKE if options.peer_python else SMOKE.partition(",")[0]
    only = options.only or (smallest if options.smoke else "")
    rows = [row for row in rows if not only or row.name in only.split(",")]
    with ceilings.start(options.threads, smoke=bool(options.smoke)) as probe:
        memory = probe.ask(LIMIT, what="memory")
    report: dict[str, Any] = {"machine": machine(), "threads": options.threads, "memory": memory}
    report["rows"] = previous(options.out / "training.json", options.threads) if options.only else {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        benchmark = Benchmark(options, cache)
        for number, row in enumerate(rows):
            spent = time.monotonic() - began
            left = f", about {spent / number * (len(rows) - number) / 60:.0f} min left" if number else ""
            print(f"{row.name} ({number + 1} of {len(rows)}{left})", flush=True)
            try:
                benchmark.measure(row)
            except WorkerError as error:  # the ceilings: without them nothing can be said of the row
                print(f"{row.name}: {error}", file=sys.stderr, flush=True)
                continue
            report["rows"][row.name] = row.summary()
            report["rows"] = {name: report["rows"][name] for name in order if name in report["rows"]}
            write(report, options.out)
            for name, side in row.sides.items():
                outcome = f"{side.median:.2f} s a step" if side.median else "failed"
                print(f"  {name}: {outcome}", flush=True)
            print(f"  {report['rows'][row.name]['ratios']}", flush=True)
    print(f"{(time.monotonic() - began) / 60:.0f} min")
    if any(side.error for row in rows for side in row.sides.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
