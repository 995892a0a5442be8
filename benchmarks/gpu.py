"""The training step on a GPU beside open_clip's, and what its time goes to: `make bench-gpu`.

    python benchmarks/gpu.py --peer-python .venv-peers/bin/python [--only b32,b32-eager,l14]

Each group has a process of ours and one of open_clip, which take turns, a step each. Writes one file, `gpu.json`,
again after every group, with all that is needed to judge how well the GPU is used: the machine, the ceiling of its
matrix products, medians, FLOPs and memory of steps; and of ours the waits of a step, how long the GPU computes in it,
the kernels that take longest, and a step whose batch is copied while the step before it runs. `--device cpu`: on a CPU.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from harness import Worker, WorkerError, machine, parse, parser_of, write
from training import OTHER_QUANTILES, THREADS, batch_lengths

MFU_GOAL, SPEED_GOAL = 0.5, 1.5
"""What we mean to reach on an H100: the share of the ceiling of matrix products, and how many times as fast as
open_clip."""
WARM_UP, STEPS, LOOP_STEPS, KERNELS = 3, 8, 10, 20


@dataclass(frozen=True)
class Group:
    """Steps of one model in bf16. `rows`: distributions of lengths (see `training.py`), and pairs of a step."""

    size: str
    peer: str
    is_compiled: bool
    rows: tuple[tuple[str, int], ...]


GROUPS = {
    "b32": Group("b32", "open_clip_compiled", True, (("full", 512), ("cc12m", 512), ("cc12m", 2048))),
    "b32-eager": Group("b32", "open_clip", False, (("full", 512), ("cc12m", 512))),
    "l14": Group("l14", "open_clip_compiled", True, (("cc12m", 128),)),
}
SMOKE = {"b32": Group("b32", "open_clip", False, (("cc12m", 2),))}


def gpu(device: str) -> dict[str, Any]:
    """What the GPU is, and what its driver says of clocks and limits."""
    if device != "cuda":
        return {}
    found = torch.cuda.get_device_properties(0)
    said = ""
    if shutil.which("nvidia-smi"):
        fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {
        "name": found.name,
        "capability": torch.cuda.get_device_capability(0),
        "bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvidia_smi": said.splitlines(),
    }


def measure(group: Group, options: argparse.Namespace, cache: str) -> list[dict[str, Any]]:
    """What came of the rows of a group. Without peers, ours alone.

    Raises:
        WorkerError: a side failed.
    """
    setup = {
        "threads": THREADS,
        "device": options.device,
        "size": group.size,
        "precision": "bf16",
        "is_compiled": group.is_compiled,
        "is_small": bool(options.smoke),
        "gradient_checkpointing": 0.0,
    }
    pythons = {group.peer: options.peer_python, "ours": sys.executable, "gemm": sys.executable}
    found = []
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker("training_contestants.py", {**setup, "name": name}, python, {"TORCHINDUCTOR_CACHE_DIR": cache})
            )
            for name, python in pythons.items()
            if python is not None
        }
        probe = workers.pop("gemm")
        for lengths, batch in group.rows:
            rates = [probe.ask("rates")]
            times = take_turns(workers, lengths, batch, 1 if options.smoke else STEPS)
            rates.append(probe.ask("rates"))
            found.append(row_of(workers, times, rates, lengths, batch))
    return found


def take_turns(workers: dict[str, Worker], lengths: str, batch: int, steps: int) -> dict[str, list[float]]:
    """Return seconds of the steps of each side after the warm-up, in turn."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(WARM_UP + steps):
        of_step = batch_lengths(lengths, batch, number, 0.5 if number else OTHER_QUANTILES)
        for name, worker in workers.items():
            if number == WARM_UP:
                worker.ask("forget")
            times[name].append(worker.ask("step", lengths=of_step, seed=number)["seconds"])
    return {name: each[WARM_UP:] for name, each in times.items()}


def row_of(
    workers: dict[str, Worker], times: dict[str, list[float]], rates: list[dict[str, float]], lengths: str, batch: int
) -> dict[str, Any]:
    """What was measured of a row, and what follows from it."""
    ceiling = max(rate for each in rates for rate in each.values())
    drawn = batch_lengths(lengths, batch, 0)
    sides = {}
    for name, worker in workers.items():
        peak, median = worker.ask("peak")["bytes"], statistics.median(times[name])
        flops = worker.ask("flops", lengths=drawn, seed=0)["flops"]
        sides[name] = {
            "about": worker.about,
            "seconds": times[name],
            "median": median,
            "peak_bytes": peak,
            "flops": flops,
            "images_per_second": batch / median,
            "mfu": flops / median / ceiling,
        }
    ours, loop_steps = workers["ours"], LOOP_STEPS if len(times["ours"]) > 1 else 1
    sides["ours"] |= {
        **ours.ask("waits", lengths=drawn, seed=0),
        "kernels": ours.ask("kernels", lengths=drawn, seed=0, most=KERNELS),
        "loop_seconds": ours.ask("loop", lengths=drawn, seed=0, steps=loop_steps)["seconds"],
    }
    peer = next((side for name, side in sides.items() if name != "ours"), None)
    return {
        "lengths": lengths,
        "batch": batch,
        "ceiling": ceiling,
        "rates": rates,
        "sides": sides,
        "speed": None if peer is None else peer["median"] / sides["ours"]["median"],
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def line_of(name: str, row: dict[str, Any]) -> str:
    """Return a row for people."""
    ours = row["sides"]["ours"]
    parts = [
        f"{name} {row['lengths']} {row['batch']}: {ours['median'] * 1000:,.1f} ms a step",
        f"MFU {ours['mfu']:.0%} (aim {MFU_GOAL:.0%})",
        f"{ours['waits']} waits",
        f"GPU busy {ours['kernels']['busy'] / ours['kernels']['seconds']:.0%}",
        f"with copies {ours['loop_seconds'] * 1000:,.1f} ms",
    ]
    if row["speed"] is not None:
        parts.append(f"{row['speed']:.2f} times as fast as open_clip (aim {SPEED_GOAL})")
    return ", ".join(parts)


def main() -> None:
    """Measure all groups, or those asked for."""
    parser = parser_of(__doc__, peers=True, only=list(GROUPS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where to compute")
    options = parse(parser)
    if options.smoke:
        options.device = "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU here; on a machine with one, install a PyTorch with CUDA")
    groups = SMOKE if options.smoke else {name: GROUPS[name] for name in options.only}
    report: dict[str, Any] = {"machine": machine(), "gpu": gpu(options.device), "groups": {}, "failed": {}}
    with tempfile.TemporaryDirectory() as cache:
        for name, group in groups.items():
            print(f"{name}: compiles and warms up", flush=True)
            try:
                rows = measure(group, options, cache)
            except WorkerError as error:  # the other groups can be measured
                print(error, file=sys.stderr, flush=True)
                report["failed"][name] = str(error)
            else:
                report["groups"][name] = {**asdict(group), "rows": rows}
                print(*(line_of(name, row) for row in rows), sep="\n", flush=True)
            write("gpu", report, options.out)
    if report["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
