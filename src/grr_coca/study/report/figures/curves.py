"""Learning curves of all arms, with bands over seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from grr_coca.study.drawing import COLOURS, FAINT, new_figure, style_axes, svg_text
from grr_coca.study.ledger import CurvePoint, LedgerRow

LOSSES = {
    "contrastive_loss": "contrastive loss",
    "captioning_loss": "captioning loss (nats per token)",
    "coca_loss": "CoCa loss",
}


def validation_curves(rows: Sequence[LedgerRow], shown: Sequence[str], titles: Mapping[str, str]) -> str:
    """Validation losses of one stage by step: mean over seeds and, of the two arms in front, the range of all seeds.

    Args:
        rows: of one stage, of all arms and seeds.
        shown: the arm that the study asks about and its baseline; other arms stand behind as faint lines.
        titles: what arms are called.
    """
    arms = list(dict.fromkeys(row.arm for row in rows))
    behind = [arm for arm in arms if arm not in shown]
    figure = new_figure(2.9)
    for axes, (loss, title) in zip(figure.subplots(1, len(LOSSES)), LOSSES.items(), strict=True):
        for arm in behind:
            steps, curves = _curves(rows, arm, loss)
            axes.plot(steps, curves.mean(axis=0), color=FAINT, linewidth=0.8, label="other arms")
        for arm, colour, marker in zip(shown, COLOURS, ("o", "s"), strict=True):
            _draw_arm(axes, *_curves(rows, arm, loss), colour, marker, titles[arm])
        style_axes(axes, title)
        axes.set_xlabel("training step", fontsize=8)
    labelled = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return svg_text(figure)


class LateChange(NamedTuple):
    """By how many per cent a validation loss changed from a step to the last one."""

    percent: float
    step: int


def late_change(rows: Sequence[LedgerRow], arm: str, loss: str = "coca_loss") -> LateChange | None:
    """How an arm's mean validation loss changed at the end: from that validation on which is nearest to three quarters
    of the steps. What tells whether a curve is past its knee; None with fewer than two validations."""
    steps, curves = _curves(rows, arm, loss)
    if len(steps) < 2:
        return None
    mean = curves.mean(axis=0)
    begin = int(np.abs(steps[:-1] - 0.75 * steps[-1]).argmin())
    return LateChange(100 * (float(mean[-1] / mean[begin]) - 1), int(steps[begin]))


def _draw_arm(axes: Axes, steps: np.ndarray, curves: np.ndarray, colour: str, marker: str, title: str) -> None:
    if len(steps):
        axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, curves.mean(axis=0), color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=title)


def _curves(rows: Sequence[LedgerRow], arm: str, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and a curve for each seed: those steps that all seeds have."""
    curves = [
        {point.step: point.val[loss] for point in row.curve if _has(point, loss)} for row in rows if row.arm == arm
    ]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in curves]).reshape(
        len(curves), len(steps)
    )


def _has(point: CurvePoint, loss: str) -> bool:
    return loss in point.val
