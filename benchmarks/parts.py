"""Where a training step of ours spends its time: FLOPs, seconds and MFU by part, and the slowest operations.

    python benchmarks/parts.py [--batch 32] [--precision bf16] [--lengths cc12m] [--eager] [--before FILE]

Writes `results/parts.json` and `.md`; with --before, an earlier `parts.json`, the table shows both.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import ceilings
import torch
from flops import flop_counter
from lengths import DISTRIBUTIONS, batch_lengths
from machine import machine, parse, parser_of
from sizes import SMALLEST
from spans import PARTS, Spans
from torch.profiler import ProfilerActivity, profile
from training_contestants import Ours

from grr_coca.cli import exit_code

WARM_UP = 2
TOP_OPERATIONS = 20


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians are not needed here: seconds are added up over all steps, and shares are what counts."""
    with ceilings.start(options.threads, smoke=bool(options.smoke)) as probe:
        ceiling = max(probe.ask(600, what="gemm", precision=options.precision).values())
    setup = {"threads": options.threads, "precision": options.precision, "compile": not options.eager}
    if options.smoke:
        setup["size"] = SMALLEST
    ours = Ours(setup)

    def step(number: int) -> None:
        ours.step(batch_lengths(options.lengths, options.batch, number), seed=number)

    for number in range(WARM_UP):
        step(number)
    timed = Spans(ours.trainer, time.perf_counter)
    with timed.watching():
        for number in range(options.steps):
            step(number)
            timed.begin(None)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(0)
    with torch.compiler.set_stance("force_eager"), flop_counter() as counter:
        counted = Spans(ours.trainer, counter.get_total_flops)
        with counted.watching():
            step(0)
            counted.begin(None)
    return {
        "machine": machine(),
        **{name: getattr(options, name) for name in ("threads", "precision", "batch", "lengths", "eager")},
        "ceiling": ceiling,
        "seconds": {part: timed.total[part] / options.steps for part in PARTS},
        "flops": {part: counted.total[part] for part in PARTS},
        "operations": top_operations(profiler),
    }


def top_operations(profiler: profile) -> list[dict[str, Any]]:
    """The slowest, by the time spent in themselves."""
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "name": event.key,
            "calls": event.count,
            "ms": event.self_cpu_time_total / 1e3,
            "share": event.self_cpu_time_total / whole,
        }
        for event in events[:TOP_OPERATIONS]
    ]


def table(report: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Markdown."""
    lines = [_about(report)]
    if before is not None:
        lines.append(f"\nBefore: {_about(before)}")
    heading = "| part | GFLOP | ms | share | MFU |"
    lines += ["", heading + (" ms before | MFU before | speed-up |" if before else "")]
    lines.append("|---" * (8 if before else 5) + "|")
    lines += [_part(part, report, before) for part in (*PARTS, "all")]
    for title, run in (("Slowest operations", report), ("Slowest operations before", before)):
        if run is None:
            continue
        lines += ["", f"**{title}**", "", "| operation | calls | ms | share |", "|---|---|---|---|"]
        lines += [
            f"| `{op['name'][:70]}` | {op['calls']} | {op['ms']:.1f} | {100 * op['share']:.1f} % |"
            for op in run["operations"]
        ]
    return "\n".join(lines) + "\n"


def _about(report: dict[str, Any]) -> str:
    where = report["machine"]
    return (
        f"{where['processor']}, {report['threads']} threads, torch {where['torch']}; `b32`, batch {report['batch']}, "
        f"{report['precision']}, captions: {report['lengths']}, {'eager' if report['eager'] else 'compiled'}; "
        f"best matrix product {report['ceiling'] / 1e9:.0f} GFLOP/s."
    )


def _part(part: str, report: dict[str, Any], before: dict[str, Any] | None) -> str:
    flops, seconds = _of(report, part)
    whole = sum(report["seconds"].values())
    mfu = flops / seconds / report["ceiling"]
    cells = [part, f"{flops / 1e9:,.1f}", f"{1e3 * seconds:,.0f}", f"{seconds / whole:.1%}", f"{mfu:.0%}"]
    if before is not None:
        old_flops, old = _of(before, part)
        cells += [f"{1e3 * old:,.0f}", f"{old_flops / old / before['ceiling']:.0%}", f"{old / seconds:.2f} ×"]
    return f"| {' | '.join(cell.replace('%', ' %') for cell in cells)} |"


def _of(report: dict[str, Any], part: str) -> tuple[float, float]:
    if part == "all":
        return sum(report["flops"].values()), sum(report["seconds"].values())
    return report["flops"][part], report["seconds"][part]


def main() -> None:
    """Measure and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--lengths", choices=list(DISTRIBUTIONS), default="full")
    parser.add_argument("--eager", action="store_true", help="do not compile the blocks")
    parser.add_argument("--before", type=Path, help="an earlier parts.json to show beside")
    options = parse(parser)
    if options.smoke:
        options.batch, options.steps, options.eager = 2, 1, True
    before = json.loads(options.before.read_text()) if options.before else None  # before --out may overwrite it
    report = measure(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "parts.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = table(report, before)
    (options.out / "parts.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(exit_code(main))
