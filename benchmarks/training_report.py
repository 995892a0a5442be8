"""The table of the training benchmark."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

NAMES = {
    "ours": "GRR-CoCa b32",
    "open_clip": "open_clip",
    "open_clip_compiled": "open_clip, compiled",
    "coca_pytorch": "CoCa-pytorch",
    "blip": "BLIP",
}
LENGTHS = {"full": "all 76 tokens", "cc12m": "like CC12M", "coco": "like COCO", "demo": "the demo's corpora"}
GIB = 2**30


def table(report: dict[str, Any]) -> str:
    """Markdown: tables of speed, of MFU and memory, and of what they were made of; then a line for each contestant."""
    where, memory, rows = report["machine"], report["memory"], report["rows"]
    lines = [
        f"{where['processor']}, {where['cores']} cores, {report['threads']} threads, torch {where['torch']}; "
        f"memory {memory['read'] / 1e9:.0f} GB/s read, {memory['copy'] / 1e9:.0f} GB/s copied.",
        "",
        *_table(("images/s, ours", "its", "ratio", "aim"), _speed, rows),
        "MFU, and peak memory in GiB:",
        "",
        *_table(("MFU, ours", "its", "aim", "memory, ours", "its", "ratio", "aim"), _mfu_and_memory, rows),
        "MFU is counted FLOPs of a step / its time / the best rate of a matrix product in that row's precision. These "
        "are the rates, for 4096³ and for a feed-forward's shape, in GFLOP/s, and the FLOPs:",
        "",
        *_table(("rates", "GFLOP per step, ours", "its", "ratio", "first step, ours"), _flops, rows),
        "Seconds per step: the median, and in brackets all of them.",
        "",
        *_table(("ours", "its"), _all_seconds, rows),
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


def _table(
    titles: Sequence[str], cells: Callable[[dict[str, Any]], Sequence[str]], rows: Mapping[str, dict[str, Any]]
) -> list[str]:
    lines = [("captions, precision, batch", "peer", *titles), ["---"] * (2 + len(titles))]
    for row in rows.values():
        lines.append((f"{label(row)}, {row['precision']}, {row['batch']}", NAMES[row["peer"]], *cells(row)))
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _sides(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return row["sides"].get("ours", {}), row["sides"].get(row["peer"], {})


def _speed(row: dict[str, Any]) -> list[str]:
    speeds = [_number(side.get("images_per_second")) for side in _sides(row)]
    return [*speeds, _times(row["ratios"]["speed"]), _aim("≥", row["goal"], " ×")]


def _mfu_and_memory(row: dict[str, Any]) -> list[str]:
    sides = _sides(row)
    return [
        *(_percent(side.get("mfu")) for side in sides),
        _aim("≥", row["mfu_goal"] and round(100 * row["mfu_goal"]), " %"),
        *(_number(side.get("peak_bytes"), GIB) for side in sides),
        _times(row["ratios"]["memory"]),
        _aim("≤", row["memory_goal"], " ×"),
    ]


def _flops(row: dict[str, Any]) -> list[str]:
    ours, peer = _sides(row)
    rates = [max(gemm[shape] for gemm in row["gemm"]) for shape in row["gemm"][0]]
    return [
        ", ".join(f"{rate / 1e9:.0f}" for rate in rates),
        _number(ours.get("flops"), 1e9),
        _number(peer.get("flops"), 1e9),
        _times(row["ratios"]["flops"], 3),
        f"{ours['first_seconds']:.0f} s" if ours.get("first_seconds") else "–",
    ]


def _all_seconds(row: dict[str, Any]) -> list[str]:
    return [*map(_seconds, _sides(row))]


def _contestants(rows: Iterable[dict[str, Any]]) -> list[str]:
    abouts = {name: side["about"] for row in rows for name, side in row["sides"].items() if side["about"]}
    lines = []
    for name, about in abouts.items():
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        lines.append(
            f"- {NAMES[name]}: {about['parameters'] / 1e6:.1f} M parameters, pads {about['padding']}; {versions}"
        )
    if "blip" in abouts:
        lines.append("- BLIP's model has only a captioning loss, and no contrastive loss.")
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
