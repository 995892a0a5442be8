"""Text table that compares two models split by split: the losses, their change, and R@1.

This module uses no plotting library, because `grr-coca evaluate --compare` also prints the table.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grr_coca.evaluate.split import Evaluation

Metrics = Mapping[str, float]

LOSSES = ("contrastive_loss", "perplexity", "coca_loss")


@dataclass(frozen=True)
class Row:
    """Row of the table: metrics of a model and its baseline on a split, or their averages over splits."""

    name: str
    model: dict[str, float]
    baseline: dict[str, float]

    def change(self, loss: str) -> float:
        """Return the relative change from the baseline, or NaN if the baseline is 0.

        If the change is negative, the model is better than the baseline.
        """
        return self.model[loss] / self.baseline[loss] - 1 if self.baseline[loss] else math.nan


def row(name: str, model: Metrics, baseline: Metrics) -> Row:
    """Create the row of a split from metrics that are named as in a ledger. Missing metrics become NaN."""
    return Row(name, _metrics(model), _metrics(baseline))


def row_metrics(evaluation: "Evaluation") -> dict[str, float]:
    """Return the finite metrics of a split except median ranks, named as in a ledger.

    In a ledger, `text_to_image/R@1` has the name `R@1`.
    """
    numbers = {name.removeprefix("text_to_image/"): value for name, value in evaluation.flat().items()}
    return {
        name: value for name, value in numbers.items() if not name.startswith("median_rank") and math.isfinite(value)
    }


def average_row(name: str, rows: Sequence[Row]) -> Row:
    """Return a row with the unweighted mean of each metric over several rows."""
    model, baseline = (
        {metric: sum(side[metric] for side in sides) / len(rows) for metric in sides[0]}
        for sides in ([row.model for row in rows], [row.baseline for row in rows])
    )
    return Row(name, model, baseline)


def short_names(names: tuple[str, str]) -> tuple[str, str]:
    """Shorten preset names for column headings, by removing the ending `_coca`."""
    return names[0].removesuffix("_coca"), names[1].removesuffix("_coca")


def format_table(rows: Sequence[Row], names: tuple[str, str], unlike: Collection[str] = ()) -> str:
    """Return the table as text: each loss of both models and its change, then R@1 (text to image) and chance.

    Args:
        rows: Rows of the table.
        names: Names of the model and of its baseline.
        unlike: Losses that cannot be compared. A dash is shown in place of their change.
    """
    titles = ["", "contrastive loss", "perplexity", "CoCa loss", "R@1 text to image"]
    heads = [["split"], *[[*short_names(names), "change"] for _ in LOSSES], [*short_names(names), "chance"]]
    groups = [[[r.name], *_loss_cells(r, unlike), _recall_cells(r)] for r in rows]
    lines = [heads, *groups]
    widths = [[max(len(line[g][c]) for line in lines) for c in range(len(heads[g]))] for g in range(len(heads))]
    rendered = [
        " │ ".join(_join_cells(cells, width) for cells, width in zip(line, widths, strict=True)) for line in lines
    ]
    spans = [len(_join_cells(head, width)) for head, width in zip(heads, widths, strict=True)]
    title = " │ ".join(title.center(span) for title, span in zip(titles, spans, strict=True))
    return "\n".join([title, rendered[0], "─" * len(title), *rendered[1:]])


def _join_cells(cells: Sequence[str], widths: Sequence[int]) -> str:
    # A group with one cell is a name; all other groups are numbers.
    align = str.rjust if len(cells) > 1 else str.ljust
    return "  ".join(align(cell, width) for cell, width in zip(cells, widths, strict=True))


def _metrics(metrics: Metrics) -> dict[str, float]:
    # A ledger does not contain losses that are NaN or infinite.
    losses = {name: metrics.get(name, math.nan) for name in LOSSES}
    return {**losses, "R@1": metrics.get("R@1", math.nan), "chance": metrics.get("chance/R@1", math.nan)}


def _loss_cells(r: Row, unlike: Collection[str]) -> list[list[str]]:
    changes = {loss: math.nan if loss in unlike else r.change(loss) for loss in LOSSES}
    shown = {loss: "–" if math.isnan(change) else f"{change:+.2%}" for loss, change in changes.items()}
    return [[f"{r.model[loss]:.3f}", f"{r.baseline[loss]:.3f}", shown[loss]] for loss in LOSSES]


def _recall_cells(r: Row) -> list[str]:
    return [f"{r.model['R@1']:.1%}", f"{r.baseline['R@1']:.1%}", f"{r.model['chance']:.2%}"]
