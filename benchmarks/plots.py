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
LENGTHS = {"full": "76 tokens", "cc12m": "CC12M lengths", "coco": "COCO lengths"}
OURS, PEERS = "#1b6ca8", "#d1741f"
"""Colours that differ for every kind of colour vision, and in print."""
BAR = 0.38


def training_plot(report: dict[str, Any], path: Path) -> None:
    """Bars: how many times as fast as the peer, how much of its memory, and both MFUs."""
    rows = list(report["rows"].values())
    figure = Figure(figsize=(12, 1.8 + 0.42 * len(rows)), layout="constrained")
    speed, memory, mfu = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 3))
    names = [f"{_label(row)}, {row['precision']}\nbatch {row['batch']}, against {NAMES[row['peer']]}" for row in rows]
    speed.set_yticks(range(len(rows)), names, fontsize=8)
    speed.set_ylim(len(rows) - 0.5, -0.5)
    for axes, key, goal, title in (
        (speed, "speed", "goal", "images per second"),
        (memory, "memory", "memory_goal", "peak memory"),
    ):
        ratios = [row["ratios"].get(key) for row in rows]
        axes.barh(range(len(rows)), [ratio or 0.0 for ratio in ratios], 0.6, color=OURS)
        for place, (ratio, row) in enumerate(zip(ratios, rows, strict=True)):
            end = max(ratio or 0.0, row[goal] or 0.0)  # the label is to the right of the mark of the target
            end = 1.0 if 0.8 < end < 1.0 else end  # and of the line at 1
            text = f"{ratio:.2f}" if ratio else "not measured"
            axes.annotate(text, (end, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
        axes.axvline(1, color="#555555", linewidth=0.8)
        axes.margins(x=0.15)
        _style(axes, f"{title}, relative to the peer", [row[goal] for row in rows])
    for offset, label, colour in ((-BAR / 2, "GRR-CoCa", OURS), (BAR / 2, "peer", PEERS)):
        sides = [row["sides"].get("ours" if label == "GRR-CoCa" else row["peer"], {"mfu": 0.0}) for row in rows]
        bars = mfu.barh(
            [i + offset for i in range(len(rows))],
            [100 * side["mfu"] for side in sides],
            BAR,
            color=colour,
            label=label,
        )
        mfu.bar_label(bars, fmt="%.0f", fontsize=7, padding=2)
    mfu.set_xlim(0, 100)
    goals = [row["mfu_goal"] and 100 * row["mfu_goal"] for row in rows]
    _style(mfu, "FLOPs utilization (MFU), % of the best matrix product", goals)
    figure.legend(*mfu.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3, loc="outside lower right")
    where = f"{report['machine']['processor']}, {report['threads']} threads, torch {report['machine']['torch']}"
    figure.suptitle(f"Training steps: {where}", size=10)
    figure.savefig(path, dpi=130)


def _label(row: dict[str, Any]) -> str:
    share = row.get("gradient_checkpointing")
    return LENGTHS[row["lengths"]] + (f", {100 * share:.0f} % recomputed" if share else "")


def _cell_label(cell: dict[str, Any]) -> str:
    images = f"{cell['batch']} image{'s' if cell['batch'] > 1 else ''}"
    return f"{cell['method']}, {images}, {cell['tokens']} tokens, {NAMES[cell['peer']]}"


def _style(axes: Axes, title: str, goals: Sequence[float | None]) -> None:
    wanted = [(goal, number) for number, goal in enumerate(goals) if goal]
    if wanted:
        axes.plot(*zip(*wanted, strict=True), "|", color="black", markersize=17, markeredgewidth=1.6, label="target")
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def captioning_plot(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """A bar for each measured cell: how many times as fast as the peer, and the target."""
    measured = [cell for cell in cells if cell["ratio"]]
    if not measured:
        return
    figure = Figure(figsize=(8, 0.45 * len(measured) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(measured))
    axes.barh(places, [cell["ratio"] for cell in measured], color=OURS)
    ends = [max(cell["ratio"], cell["goal"]) for cell in measured]  # to the right of the mark of the target
    for place, cell in enumerate(measured):
        text = f"{cell['ratio']:.1f}"
        axes.annotate(text, (ends[place], place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.scatter(
        [cell["goal"] for cell in measured], places, marker="|", s=300, color="black", label="target", zorder=3
    )
    names = [_cell_label(cell) for cell in measured]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.8, 2 * max(ends))
    axes.set_xlabel("captions per second, relative to the peer")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
