"""Step time and peak memory of ours along five axes, against counted FLOPs: `make bench-scaling`.

    python benchmarks/scaling.py [--only batch,width] [--precision bf16] [--compile]

From a model of moderate size, one thing at a time is made smaller and larger: batch, width, depth, text length, image
size. Each point is a process of its own; the points of an axis take turns, a step each, so that what else the machine
does hits all of them. A straight line, time = a + b · FLOPs, is laid through the medians of each axis, least squares
of the relative deviations, which shall stay within 10 %. Writes `results/scaling.json`, `.md` and `.png`; about ten
minutes on two cores.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ceilings
import numpy as np
from machine import machine, parse, parser_of
from plots import scaling_plot
from workers import Worker, WorkerError

WARM_UP = 2
LIMIT = 600.0
AIM = 0.10
"""Of the time that the line gives: the largest deviation that we mean to allow."""


@dataclass(frozen=True)
class Point:
    """A model and a batch."""

    batch: int = 16
    width: int = 384
    depth: int = 6
    text_length: int = 40
    image_size: int = 224


AXES: dict[str, tuple[int, ...]] = {
    "batch": (4, 8, 16, 24, 32),
    "width": (256, 320, 384, 448, 512),
    "depth": (2, 4, 6, 8, 10),
    "text_length": (12, 24, 40, 56, 76),
    "image_size": (128, 160, 192, 224, 256),
}


SMOKE_POINT = Point(batch=2, width=64, depth=1, text_length=8, image_size=64)
SMOKE_AXES: dict[str, tuple[int, ...]] = {"batch": (1, 4)}


@dataclass(frozen=True)
class Fit:
    """time = intercept + slope · FLOPs."""

    intercept: float
    slope: float
    r_squared: float
    largest_deviation: float
    """Share of the time that the line gives."""


def fit_line(flops: list[float], seconds: list[float]) -> Fit:
    """Least squares of the relative deviations, since that is how a prediction is judged."""
    x, t = np.array(flops) / max(flops), np.array(seconds)
    design = np.stack([np.ones_like(x), x], axis=1) / t[:, None]
    (intercept, slope), *_ = np.linalg.lstsq(design, np.ones_like(t), rcond=None)
    line = intercept + slope * x
    r_squared = 1 - ((t - line) ** 2).sum() / ((t - t.mean()) ** 2).sum()
    deviation = np.abs(t / line - 1).max()
    return Fit(float(intercept), float(slope / max(flops)), float(r_squared), float(deviation))


def measure_axis(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds, FLOPs and peak memory of each of its points."""
    points = [replace(options.middle, **{name: value}) for value in options.axes[name]]
    workers: list[Worker] = []
    try:
        workers += [_start(point, options) for point in points]
        for worker, point in zip(workers, points, strict=True):
            for number in range(WARM_UP):
                _step(worker, point, number)
            worker.ask(LIMIT, what="forget")
        rounds = range(options.steps)
        seconds = [[_step(w, p, number) for w, p in zip(workers, points, strict=True)] for number in rounds]
        return [
            {
                "value": getattr(point, name),
                "seconds": statistics.median(times),
                "all_seconds": times,
                "peak_bytes": worker.ask(LIMIT, what="peak")["bytes"],
                "flops": worker.ask(LIMIT, what="flops", lengths=_lengths(point), seed=0)["flops"],
                "parameters": worker.about["parameters"],
            }
            for worker, point, times in zip(workers, points, map(list, zip(*seconds, strict=True)), strict=True)
        ]
    finally:
        for worker in workers:
            worker.close()


def _start(point: Point, options: argparse.Namespace) -> Worker:
    size = {"width": point.width, "depth": point.depth, "image_size": point.image_size}
    setup = {
        "name": "ours",
        "threads": options.threads,
        "precision": options.precision,
        "compile": options.compile,
        "size": size,
    }
    return Worker(f"{point}", "training_contestants.py", setup, environment={"OMP_NUM_THREADS": str(options.threads)})


def _lengths(point: Point) -> list[int]:
    return [point.text_length] * point.batch


def _step(worker: Worker, point: Point, number: int) -> float:
    return worker.ask(LIMIT, what="step", lengths=_lengths(point), seed=number)["seconds"]


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    where, best = report["machine"], report["ceiling"]
    lines = [
        f"{where['processor']}, {where['cores']} cores, {report['threads']} threads, torch {where['torch']}, "
        f"{report['precision']}{', compiled' if report['compiled'] else ''}; around {report['middle']}; "
        f"best matrix product {best / 1e9:.0f} GFLOP/s.",
        "",
        "| axis | values | seconds a step | MFU | peak GiB | slope, GFLOP/s (share of the best) | intercept, s | R² "
        "| furthest off the line | aim |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, axis, best) for name, axis in report["axes"].items()),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, axis: dict[str, Any], best: float) -> str:
    points, fit = axis["points"], axis["fit"]
    rate = 1 / fit["slope"]
    cells = [
        name.replace("_", " "),
        " / ".join(str(point["value"]) for point in points),
        " / ".join(f"{point['seconds']:.2f}" for point in points),
        " / ".join(f"{100 * point['flops'] / point['seconds'] / best:.0f}" for point in points) + " %",
        " / ".join(f"{point['peak_bytes'] / 2**30:.2f}" for point in points),
        f"{rate / 1e9:.0f} ({100 * rate / best:.0f} %)",
        f"{fit['intercept']:.3f}",
        f"{fit['r_squared']:.4f}",
        f"{100 * fit['largest_deviation']:.1f} %",
        f"≤ {100 * AIM:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


def write(report: dict[str, Any], out: Path) -> None:
    """JSON, table and plot."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "scaling.md").write_text(table(report), encoding="utf-8")
    scaling_plot(report, out / "scaling.png")


def main() -> None:
    """Measure all axes, or those asked for; results are kept as they come."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each point")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, anew for each point")
    parser.add_argument("--only", default="", help=f"axes to measure, of {','.join(AXES)}")
    options = parse(parser)
    options.middle, options.axes = (SMOKE_POINT, SMOKE_AXES) if options.smoke else (Point(), AXES)
    if options.smoke:
        options.steps = 1
    axes = list(filter(None, options.only.split(","))) or list(options.axes)
    if unknown := set(axes) - AXES.keys():
        parser.error(f"no axis {', '.join(sorted(unknown))}; there are {', '.join(AXES)}")

    report: dict[str, Any] = {
        "machine": machine(),
        "threads": options.threads,
        "precision": options.precision,
        "compiled": options.compile,
        "middle": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in vars(options.middle).items()),
        "ceiling": 0.0,
        "axes": {},
    }
    failed = False
    probe = ceilings.start(options.threads, smoke=bool(options.smoke))
    for number, name in enumerate(axes):
        print(f"{name} ({number + 1} of {len(axes)})", flush=True)
        rates = probe.ask(LIMIT, what="gemm", precision=options.precision).values()
        report["ceiling"] = max(report["ceiling"], *rates)  # of the whole run: others may be at work now and then
        try:
            points = measure_axis(name, options)
        except WorkerError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        fit = fit_line([point["flops"] for point in points], [point["seconds"] for point in points])
        report["axes"][name] = {"points": points, "fit": vars(fit)}
        write(report, options.out)
        print(f"  {_row(name, report['axes'][name], report['ceiling'])}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
