"""What `captioning.py` measured, as a table and as a picture."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Cell:
    """A row of the table: what is decoded, who against whom, and the seconds that each run took."""

    method: str
    batch: int
    tokens: int
    peer: str
    goal: float
    """How many times as fast as the peer we mean to be."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    stopped: bool = False
    """The peer's run was stopped at the limit: the ratio is a lower bound."""
    failed: str = ""
    """Who could not do it, and why: nobody is compared."""

    def median(self, name: str) -> float | None:
        """Seconds."""
        times = self.seconds.get(name)
        return statistics.median(times) if times else None

    @property
    def ratio(self) -> float | None:
        """Our captions per second in units of the peer's."""
        ours, peers = self.median("ours"), self.median(self.peer)
        return peers / ours if ours and peers and not self.failed else None


def table(report: dict[str, Any], cells: Sequence[Cell]) -> str:
    """Markdown."""
    about = report["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; random weights, "
        f"{about['precision']}; medians.",
        "",
        *(f"- {name}: {_describe(contestant)}" for name, contestant in report["contestants"].items()),
        "",
        "| decoding | batch | tokens | captions/s | peer | its captions/s | ratio | goal | runs (ours, peer) |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(cell) for cell in cells),
        "",
    ]
    steps = report["step"]
    lines.append(
        f"One step at batch {steps['batch']}: {steps['ms_at_5']:.1f} ms at length 5, {steps['ms_at_60']:.1f} ms at "
        f"length 60, {steps['ratio']:.2f} × (goal: at most 1.15 ×)."
    )
    if any(cell.stopped for cell in cells):
        lines.append(f"\n≥: the peer was stopped after {report['limit_s']:.0f} s, which counts as its time.")
    lines += [f"\n{cell.method} {cell.batch} × {cell.tokens}: {cell.failed}" for cell in cells if cell.failed]
    return "\n".join(lines) + "\n"


def _describe(contestant: dict[str, Any]) -> str:
    if "missing" in contestant:
        return f"not measured ({contestant['missing']})"
    versions = ", ".join(f"{name} {version}" for name, version in contestant["versions"].items())
    return f"{contestant['parameters'] / 1e6:.1f} M parameters; {versions}"


def row(cell: Cell) -> str:
    """A line of the table."""
    ours, peer = cell.median("ours"), cell.median(cell.peer)
    speed = [f"{cell.batch / seconds:.3g}" if seconds else "–" for seconds in (ours, peer)]
    runs = ", ".join(str(len(cell.seconds.get(name, []))) for name in ("ours", cell.peer))
    goal = f"{cell.goal:g} ×"
    return (
        f"| {cell.method} | {cell.batch} | {cell.tokens} | {speed[0]} | {cell.peer} | {speed[1]} | {_ratio(cell)} "
        f"| {goal} | {runs} |"
    )


def _ratio(cell: Cell) -> str:
    bound = "≥ " if cell.stopped else ""
    return f"{bound}{cell.ratio:.1f} ×" if cell.ratio else "–"


def plot(cells: Sequence[Cell], path: Path) -> None:
    """A bar for each measured cell: how many times as fast as the peer, and how many times we mean to be."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    measured = [cell for cell in cells if cell.ratio]
    if not measured:
        return
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(measured) + 1.2), layout="constrained")
    places = range(len(measured))
    axes.barh(places, [cell.ratio or 0 for cell in measured], color="#4c78a8")
    for place, cell in zip(places, measured, strict=True):  # behind the aim, where that is further out
        end = (max(cell.ratio or 0, cell.goal), place)
        axes.annotate(_ratio(cell), end, xytext=(5, 0), textcoords="offset points", va="center")
    axes.scatter([cell.goal for cell in measured], places, marker="|", s=300, color="black", label="aim", zorder=3)
    names = [f"{cell.method} {cell.batch} × {cell.tokens}, {cell.peer}" for cell in measured]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.8, 2 * max(max(cell.ratio or 0, cell.goal) for cell in measured))
    axes.set_xlabel("captions per second, in units of the peer's")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
