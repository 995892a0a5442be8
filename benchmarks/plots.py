"""The benchmarks' plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAMES = {
    "ours": "GRR-CoCa b32",
    "open_clip": "open_clip",
    "open_clip_compiled": "open_clip, compiled",
    "blip": "BLIP",
}
LENGTHS = {"full": "all 76 tokens", "cc12m": "like CC12M", "coco": "like COCO"}
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
    _ratio_bars(speed, [row["ratios"].get("speed") for row in rows], [row["goal"] for row in rows])
    _style(speed, "images a second, in units of the peer's")
    _ratio_bars(memory, [row["ratios"].get("memory") for row in rows], [row["memory_goal"] for row in rows])
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


def captioning_plot(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """A bar for each measured cell: how many times as fast as the peer, and how many times we mean to be."""
    measured = [cell for cell in cells if cell["ratio"]]
    if not measured:
        return
    figure = Figure(figsize=(8, 0.45 * len(measured) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(measured))
    axes.barh(places, [cell["ratio"] for cell in measured], color=COLOURS["ours"])
    for place, cell in zip(places, measured, strict=True):  # behind the aim, where that is further out
        end = (max(cell["ratio"], cell["goal"]), place)
        axes.annotate(f"{cell['ratio']:.1f} ×", end, xytext=(5, 0), textcoords="offset points", va="center")
    axes.scatter([cell["goal"] for cell in measured], places, marker="|", s=300, color="black", label="aim", zorder=3)
    names = [f"{cell['method']} {cell['batch']} × {cell['tokens']}, {cell['peer']}" for cell in measured]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.8, 2 * max(max(cell["ratio"], cell["goal"]) for cell in measured))
    axes.set_xlabel("captions per second, in units of the peer's")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def label(row: dict[str, Any]) -> str:
    """What is trained on, in words."""
    share = row.get("gradient_checkpointing")
    recomputed = f", {share:.0%} recomputed".replace("%", " %") if share else ""
    return f"{LENGTHS[row['lengths']]}{recomputed}"


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
