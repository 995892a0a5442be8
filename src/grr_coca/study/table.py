"""The table of a comparison: two models, the same splits, and the change over the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass

from grr_coca.evaluate.split import Evaluation

LOSSES = ("contrastive_loss", "perplexity", "coca_loss")


@dataclass(frozen=True)
class Row:
    """A split, or an average of splits: every metric for the model and for the baseline."""

    name: str
    model: dict[str, float]
    baseline: dict[str, float]

    def change(self, loss: str) -> float:
        """Change over the baseline, as a share of it; below zero the model is better."""
        return self.model[loss] / self.baseline[loss] - 1


def row(name: str, model: Evaluation, baseline: Evaluation) -> Row:
    """The row of one split."""
    return Row(name, _metrics(model), _metrics(baseline))


def average_row(name: str, rows: Sequence[Row]) -> Row:
    """The mean of each metric over rows, every row counting alike."""
    model, baseline = (
        {metric: sum(side[metric] for side in sides) / len(rows) for metric in sides[0]}
        for sides in ([row.model for row in rows], [row.baseline for row in rows])
    )
    return Row(name, model, baseline)


def format_table(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """The table as text: per loss both models and the change, then text-to-image R@1 with chance."""
    short = tuple(name.removesuffix("_coca") for name in names)
    head = ["split"]
    for title in ("contrastive", "perplexity", "CoCa loss"):
        head += [f"{title} {short[0]}", short[1], "change"]
    head += [f"R@1 {short[0]}", short[1], "chance"]
    body = [[r.name, *_loss_cells(r), *_recall_cells(r)] for r in rows]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in [head, *body]
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    metrics = {loss: getattr(evaluation, loss) for loss in LOSSES}
    return {**metrics, "R@1": evaluation.text_to_image["R@1"], "chance": evaluation.chance["R@1"]}


def _loss_cells(r: Row) -> list[str]:
    cells = []
    for loss in LOSSES:
        cells += [f"{r.model[loss]:.3f}", f"{r.baseline[loss]:.3f}", f"{r.change(loss):+.2%}"]
    return cells


def _recall_cells(r: Row) -> list[str]:
    return [f"{r.model['R@1']:.1%}", f"{r.baseline['R@1']:.1%}", f"{r.model['chance']:.2%}"]
