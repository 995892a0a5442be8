"""The report's plots, as SVG text."""

from collections.abc import Sequence

from grr_coca.study.demo.table import LOSSES, Row
from grr_coca.study.drawing import COLOURS, new_figure, style_axes, svg_text

LOSS_NAMES = {"contrastive_loss": "contrastive loss", "perplexity": "perplexity", "coca_loss": "CoCa loss"}

Log = list[dict[str, float]]


def learning_curves(names: tuple[str, str], train: tuple[Log, Log], val: tuple[Log, Log]) -> str:
    """Training losses by step, faint, and validation losses on top of them."""
    figure = new_figure(3.2)
    for axes, train_key, val_key, title in zip(
        figure.subplots(1, 2),
        ("contrastive", "captioning"),
        ("contrastive_loss", "captioning_loss"),
        ("contrastive loss", "captioning loss (nats per token)"),
        strict=True,
    ):
        for name, colour, train_log, val_log in zip(names, COLOURS, train, val, strict=True):
            axes.plot(*_series(train_log, train_key), color=colour, alpha=0.45, linewidth=1, label=f"{name}, train")
            axes.plot(*_series(val_log, val_key), color=colour, marker="o", markersize=4, label=f"{name}, val")
        style_axes(axes, title)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    return svg_text(figure)


def improvement_bars(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """Change of each loss over the baseline in per cent, a group of bars per split."""
    figure = new_figure(3.0)
    axes = figure.subplots()
    width = 0.8 / len(LOSSES)
    for i, (loss, shade) in enumerate(zip(LOSSES, ("#123f63", "#1b6ca8", "#7fb2d9"), strict=True)):
        positions = [group + (i - 1) * width for group in range(len(rows))]
        bars = axes.bar(positions, [100 * row.change(loss) for row in rows], width, color=shade, label=LOSS_NAMES[loss])
        axes.bar_label(bars, fmt="%+.1f", fontsize=7, padding=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.margins(y=0.18)
    style_axes(axes, f"change of {names[0]} over {names[1]} in %, below zero is better")
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return svg_text(figure)


def _series(log: Log, key: str) -> tuple[list[float], list[float]]:
    """Steps and values; lines without the value, of steps that were all skipped, are left out."""
    points = [(row["step"], row[key]) for row in log if key in row]
    return [step for step, _ in points], [value for _, value in points]
