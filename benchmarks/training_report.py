"""The table of the training benchmark."""

from collections.abc import Iterable
from typing import Any

NAMES = {"ours": "GRR-CoCa b32", "open_clip": "open_clip", "coca_pytorch": "CoCa-pytorch", "blip": "BLIP"}
LENGTHS = {"full": "all 76 tokens", "cc12m": "like CC12M", "coco": "like COCO", "demo": "the demo's corpora"}
GIB = 2**30


def table(report: dict[str, Any]) -> str:
    """Markdown: a row a comparison, a line a contestant, what was measured against."""
    where, memory, rows = report["machine"], report["memory"], report["rows"]
    lines = [
        f"{where['processor']}, {where['cores']} cores, {report['threads']} threads, torch {where['torch']}; "
        f"memory {memory['read'] / 1e9:.0f} GB/s read, {memory['copy'] / 1e9:.0f} GB/s copied.",
        "",
        "| captions | precision | batch | peer | images/s, ours | peer | ratio | aim | MFU, ours | peer | aim "
        "| peak GiB, ours | peer | ratio | aim |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(row) for row in rows.values()),
        "",
        "MFU: counted FLOPs of a step / its time / the best rate of a matrix product in that row's precision:",
        "",
        "| row | matrix products, GFLOP/s: 4096³ | feed-forward's shape | GFLOP a step, ours | peer | ratio "
        "| s a step, ours (all) | peer (all) | first step, ours |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_details(name, row) for name, row in rows.items()),
        "",
        *_contestants(rows.values()),
        *_errors(rows),
    ]
    return "\n".join(lines) + "\n"


def label(row: dict[str, Any]) -> str:
    """What is trained on, in words."""
    without = " without AMX" if row["environment"] else ""
    share = row.get("gradient_checkpointing")
    recomputed = f", {share:.0%} recomputed".replace("%", " %") if share else ""
    return f"{LENGTHS[row['lengths']]}{without}{recomputed}"


def _row(row: dict[str, Any]) -> str:
    ours, peer = row["sides"].get("ours", {}), row["sides"].get(row["peer"], {})
    cells = [
        label(row),
        row["precision"],
        str(row["batch"]),
        NAMES[row["peer"]],
        _number(ours.get("images_per_second")),
        _number(peer.get("images_per_second")),
        _times(row["ratios"]["speed"]),
        _aim("≥", row["goal"], " ×"),
        _percent(ours.get("mfu")),
        _percent(peer.get("mfu")),
        _aim("≥", row["mfu_goal"] and round(100 * row["mfu_goal"]), " %"),
        _number(ours.get("peak_bytes"), GIB),
        _number(peer.get("peak_bytes"), GIB),
        _times(row["ratios"]["memory"]),
        _aim("≤", row["memory_goal"], " ×"),
    ]
    return f"| {' | '.join(cells)} |"


def _details(name: str, row: dict[str, Any]) -> str:
    ours, peer = row["sides"].get("ours", {}), row["sides"].get(row["peer"], {})
    rates = [max(gemm[shape] for gemm in row["gemm"]) for shape in row["gemm"][0]]
    cells = [
        name,
        *(f"{rate / 1e9:.0f}" for rate in rates),
        _number(ours.get("flops"), 1e9),
        _number(peer.get("flops"), 1e9),
        _times(row["ratios"]["flops"], 3),
        _seconds(ours),
        _seconds(peer),
        f"{ours['first_seconds']:.0f} s" if ours.get("first_seconds") else "–",
    ]
    return f"| {' | '.join(cells)} |"


def _contestants(rows: Iterable[dict[str, Any]]) -> list[str]:
    abouts = {name: side["about"] for row in rows for name, side in row["sides"].items() if side["about"]}
    lines = []
    for name, about in abouts.items():
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        lines.append(
            f"- {NAMES[name]}: {about['parameters'] / 1e6:.1f} M parameters, pads {about['padding']}; {versions}"
        )
    if "blip" in abouts:
        lines.append("- BLIP's model has a captioning loss alone, no contrastive one.")
    return lines


def _errors(rows: dict[str, Any]) -> list[str]:
    failed = [(name, who) for name, row in rows.items() for who, side in row["sides"].items() if side["error"]]
    return [f"- {name}: {NAMES[who]} failed, see training.json" for name, who in failed]


def _number(value: float | None, unit: float = 1) -> str:
    return "–" if value is None else f"{value / unit:,.0f}" if value / unit >= 100 else f"{value / unit:.3g}"


def _times(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f} ×"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}".replace("%", " %")


def _aim(sign: str, value: float | None, unit: str) -> str:
    return f"{sign} {value:g}{unit}" if value else ""


def _seconds(side: dict[str, Any]) -> str:
    if not side.get("median"):
        return "–"
    return f"{side['median']:.2f} ({', '.join(f'{s:.2f}' for s in side['seconds'])})"
