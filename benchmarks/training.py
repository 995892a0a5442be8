"""The training step beside open_clip, in eager mode and compiled: `make bench-training`.

    python benchmarks/training.py --peer-python .venv-peers/bin/python [--only full-fp32,coco-bf16]

Each row has two processes, ours and a peer, that take turns, a step each; only one computes at a time. Medians of the
steps after the warm-up; compiling is not counted but reported. The ceiling of matrix products in the row's precision
is measured before and after its steps. Writes `results/training.json` and `.png`, anew after every row. On two cores
all rows take more than an hour.
"""

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import NormalDist
from typing import Any

from harness import Worker, WorkerError, machine, parse, parser_of, write
from plots import training_plot

WARM_UP = 2
"""Steps before the measured ones. In the first, sides that are compiled compile, and the others take their memory."""
OTHER_QUANTILES = 0.3
"""The first step has captions of other lengths, so that nothing is compiled for the measured ones alone."""
BATCH, STEPS, THREADS = 32, 5, 2
"""Pairs of a step, measured steps of each side, and threads."""

# --- Lengths of captions, in tokens of CLIP's vocabulary: [BOS], words, [EOS]; [CLS] comes on top in every model.

CONTEXT = 76
"""Tokens to which captions are cut, and to which open_clip pads them."""
TOKENS_PER_WORD = 1.25
"""Of English captions under CLIP's vocabulary."""

# Words: mean 20.2 and standard deviation 16.3, the figures of CC12M's paper (arXiv 2102.08981), as a log-normal.
CC12M_SIGMA = math.sqrt(math.log(1 + (16.3 / 20.2) ** 2))
CC12M_MU = math.log(20.2) - CC12M_SIGMA**2 / 2
# Annotators of COCO were asked for eight words at least; mean 10.5, standard deviation 2.5.
COCO_LEAST, COCO_MORE = 8, 2.5

WORDS: dict[str, Callable[[float], float]] = {
    "full": lambda _: CONTEXT,  # the worst case
    "cc12m": lambda quantile: math.exp(CC12M_MU + CC12M_SIGMA * NormalDist().inv_cdf(quantile)),
    "coco": lambda quantile: COCO_LEAST - COCO_MORE * math.log(1 - quantile),
}
"""The words of a caption by its quantile."""


def batch_lengths(distribution: str, size: int, seed: int, offset: float = 0.5) -> list[int]:
    """The lengths at equally spaced quantiles, so that even a batch of 32 has the mean and the tail of a distribution;
    in an order drawn from the seed. Another `offset` (0 to 1) gives other quantiles."""
    words = [max(1, round(WORDS[distribution]((i + offset) / size))) for i in range(size)]
    lengths = [min(CONTEXT, round(TOKENS_PER_WORD * number) + 2) for number in words]
    random.Random(seed).shuffle(lengths)
    return lengths


# --- Rows


@dataclass(frozen=True)
class Row:
    """What is trained on, in which precision, against whom, and how many times as fast we mean to be."""

    lengths: str
    precision: str
    peer: str = "open_clip"
    goal: float | None = None
    mfu_goal: float | None = None
    memory_goal: float | None = None
    gradient_checkpointing: float = 0.0
    """Ours: how much of what blocks would keep for the backward pass is computed again."""
    batch: int = BATCH


LEAN: dict[str, float] = {"goal": 1.35, "memory_goal": 0.6, "gradient_checkpointing": 0.75}
ROWS = {
    "full-fp32": Row("full", "fp32", goal=1.35, mfu_goal=0.8, memory_goal=0.6),
    "full-fp32-lean": Row("full", "fp32", **LEAN),
    "full-bf16": Row("full", "bf16", goal=1.35, mfu_goal=0.7),
    "full-bf16-lean": Row("full", "bf16", **LEAN),
    "cc12m-fp32": Row("cc12m", "fp32", goal=1.9),
    "cc12m-bf16": Row("cc12m", "bf16", goal=1.9),
    "coco-fp32": Row("coco", "fp32", goal=2.3),
    "coco-bf16": Row("coco", "bf16", goal=2.3),
    **{
        f"{lengths}-{precision}-compiled": Row(lengths, precision, "open_clip_compiled")
        for lengths in WORDS
        for precision in ("fp32", "bf16")
    },
}
SMOKE = {
    "full-fp32": Row("full", "fp32", batch=2),
    "coco-bf16-compiled": Row("coco", "bf16", "open_clip_compiled", batch=2),
}


def measure(row: Row, options: argparse.Namespace, cache: str) -> dict[str, Any]:
    """What came of a row. Without peers, ours alone.

    Raises:
        WorkerError: a side failed.
    """
    setup = {
        "threads": THREADS,
        "device": "cpu",
        "size": "b32",
        "precision": row.precision,
        "is_compiled": True,
        "is_small": bool(options.smoke),
        "gradient_checkpointing": row.gradient_checkpointing,
    }
    pythons = {row.peer: options.peer_python, "ours": sys.executable, "gemm": sys.executable}
    # Compiled anew in every call, and once in it for all rows of a precision.
    environment = {"TORCHINDUCTOR_CACHE_DIR": cache}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker("training_contestants.py", {**setup, "name": name}, python, environment))
            for name, python in pythons.items()
            if python is not None
        }
        probe = workers.pop("gemm")
        gemm = [probe.ask("rates")]
        times: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(WARM_UP):
            lengths = batch_lengths(row.lengths, row.batch, number, 0.5 if number else OTHER_QUANTILES)
            for name, worker in workers.items():
                times[name].append(worker.ask("step", lengths=lengths, seed=number)["seconds"])
        for worker in workers.values():
            worker.ask("forget")
        for number in range(1 if options.smoke else STEPS):
            lengths = batch_lengths(row.lengths, row.batch, number)
            for name, worker in workers.items():
                times[name].append(worker.ask("step", lengths=lengths, seed=number)["seconds"])
        gemm.append(probe.ask("rates"))
        ceiling = max(rate for rates in gemm for rate in rates.values())
        sides = {name: side_of(row, worker, times[name], ceiling) for name, worker in workers.items()}
    ratios = {}
    if row.peer in sides:
        ours, peer = sides["ours"], sides[row.peer]
        ratios = {
            "speed": peer["median"] / ours["median"],
            "memory": ours["peak_bytes"] / peer["peak_bytes"],
            "flops": ours["flops"] / peer["flops"],
        }
    when = datetime.now(UTC).isoformat(timespec="minutes")
    return {**asdict(row), "sides": sides, "gemm": gemm, "when": when, "ratios": ratios, "ceiling": ceiling}


def side_of(row: Row, worker: Worker, times: list[float], ceiling: float) -> dict[str, Any]:
    """What was measured of one side, and what follows from it."""
    peak = worker.ask("peak")["bytes"]  # before its FLOPs are counted, which takes memory
    flops = worker.ask("flops", lengths=batch_lengths(row.lengths, row.batch, 0), seed=0)["flops"]
    median = statistics.median(times[WARM_UP:])
    return {
        "about": worker.about,
        "seconds": times[WARM_UP:],
        "first_seconds": times[0],
        "peak_bytes": peak,
        "flops": flops,
        "median": median,
        "images_per_second": row.batch / median,
        "flops_per_second": flops / median,
        "mfu": flops / median / ceiling,
    }


def main() -> None:
    """Measure all rows, or those asked for."""
    options = parse(parser_of(__doc__, peers=True, only=list(ROWS)))
    rows = {name: ROWS[name] for name in options.only}
    if options.smoke:  # without peers, the first alone
        rows = SMOKE if options.peer_python else dict(list(SMOKE.items())[:1])
    report: dict[str, Any] = {"machine": machine(), "threads": THREADS, "rows": {}}
    began, failed = time.monotonic(), False
    with tempfile.TemporaryDirectory() as cache:
        for number, (name, row) in enumerate(rows.items()):
            spent = (time.monotonic() - began) / 60
            left = f", about {spent / number * (len(rows) - number):.0f} min left" if number else ""
            print(f"{name} ({number + 1} of {len(rows)}{left})", flush=True)
            try:
                found = measure(row, options, cache)
            except WorkerError as error:  # the other rows can be measured
                print(error, file=sys.stderr, flush=True)
                failed = True
                continue
            report["rows"][name] = found
            write("training", report, options.out)
            training_plot(report, options.out / "training.png")
            for side, each in found["sides"].items():
                print(f"  {side}: {each['median']:.2f} s a step", flush=True)
            print(f"  {found['ratios']}", flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
