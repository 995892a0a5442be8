"""The benchmarks' plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from training_report import NAMES, label

COLOURS = {"ours": "#1b6ca8", "peer": "#d1741f"}
"""Told apart by every kind of colour vision, and in print."""
BAR = 0.38


def training_plot(report: dict[str, Any], path: Path) -> None:
    """Bars: how many times as fast as the peer, how much of its memory, and both MFUs."""
    rows = list(report["rows"].values())
    figure = Figure(figsize=(12, 1.8 + 0.42 * len(rows)), layout="constrained")
    speed, memory, mfu = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 3))
    names = [f"{label(row)}, {row['precision']}\nbatch {row['batch']}, against {NAMES[row['peer']]}" for row in rows]
    speed.set_yticks(range(len(rows)), names, fontsize=8)
    speed.set_ylim(len(rows) - 0.5, -0.5)
    _ratio_bars(speed, [row["ratios"]["speed"] for row in rows], [row["goal"] for row in rows])
    _style(speed, "images a second, in units of the peer's")
    _ratio_bars(memory, [row["ratios"]["memory"] for row in rows], [row["memory_goal"] for row in rows])
    _style(memory, "peak memory, in units of the peer's")
    for offset, side in ((-BAR / 2, "ours"), (BAR / 2, "peer")):
        values = [_mfu(row, "ours" if side == "ours" else row["peer"]) for row in rows]
        bars = mfu.barh([i + offset for i in range(len(rows))], values, BAR, color=COLOURS[side], label=side)
        mfu.bar_label(bars, [f"{value:.0f}" if value else "" for value in values], fontsize=7, padding=2)
    _goals(mfu, [row["mfu_goal"] and 100 * row["mfu_goal"] for row in rows])
    mfu.set_xlim(0, 100)
    _style(mfu, "MFU in % of the best matrix product here")
    handles, labels = mfu.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=3, loc="outside lower right")
    where = report["machine"]
    figure.suptitle(
        f"A training step: {where['processor']}, {report['threads']} threads, torch {where['torch']}", size=10
    )
    figure.savefig(path, dpi=130)


def scaling_plot(report: dict[str, Any], path: Path) -> None:
    """A small plot an axis: time against counted FLOPs with its straight line, and peak memory below."""
    axes_of = report["axes"]
    figure = Figure(figsize=(2.7 * len(axes_of), 5.2), layout="constrained")
    grid = figure.subplots(2, len(axes_of), squeeze=False)
    for column, (name, axis) in enumerate(axes_of.items()):
        points, fit = axis["points"], axis["fit"]
        flops = [point["flops"] / 1e9 for point in points]
        time, memory = grid[0][column], grid[1][column]
        time.plot(flops, [point["seconds"] for point in points], "o", color=COLOURS["ours"], markersize=5)
        ends = [0.0, max(flops)]
        time.plot(ends, [fit["intercept"] + fit["slope"] * 1e9 * x for x in ends], color=COLOURS["peer"], linewidth=1.2)
        _below(time, points, flops)
        time.set_xlim(left=0)
        time.set_ylim(bottom=0)
        time.set_xlabel("GFLOP a step", fontsize=8)
        _style(
            time, f"{name.replace('_', ' ')}: off the line by {fit['largest_deviation']:.1%} at most".replace("%", " %")
        )
        memory.plot(
            range(len(points)), [p["peak_bytes"] / 2**30 for p in points], "o-", color=COLOURS["ours"], markersize=4
        )
        memory.set_xticks(range(len(points)), [str(point["value"]) for point in points], fontsize=7)
        memory.set_ylim(bottom=0)
        memory.set_xlabel(name.replace("_", " "), fontsize=8)
        _style(memory, "peak memory, GiB")
    grid[0][0].set_ylabel("seconds a step", fontsize=8)
    where = report["machine"]
    figure.suptitle(f"{where['processor']}, {report['threads']} threads, {report['precision']}", size=10)
    figure.savefig(path, dpi=130)


def _below(axes: Axes, points: Sequence[dict[str, Any]], flops: Sequence[float]) -> None:
    for point, x in zip(points, flops, strict=True):
        axes.annotate(
            str(point["value"]), (x, point["seconds"]), (3, -9), textcoords="offset points", fontsize=7, color="#555555"
        )


def _mfu(row: dict[str, Any], name: str) -> float:
    return 100 * (row["sides"].get(name, {}).get("mfu") or 0.0)


def _ratio_bars(axes: Axes, ratios: Sequence[float | None], goals: Sequence[float | None]) -> None:
    bars = axes.barh(range(len(ratios)), [ratio or 0.0 for ratio in ratios], 0.6, color=COLOURS["ours"])
    axes.bar_label(bars, [f"{ratio:.2f}" if ratio else "not measured" for ratio in ratios], fontsize=7, padding=2)
    axes.axvline(1, color="#555555", linewidth=0.8)
    _goals(axes, goals)
    axes.margins(x=0.15)


def _goals(axes: Axes, goals: Sequence[float | None]) -> None:
    wanted = [(goal, number) for number, goal in enumerate(goals) if goal]
    if wanted:
        axes.plot(*zip(*wanted, strict=True), "|", color="black", markersize=17, markeredgewidth=1.6, label="aim")


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
