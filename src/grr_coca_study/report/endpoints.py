"""Endpoints (metrics after a training phase): their names, their values in rows, and intervals over images.

Shapes: N images, S seeds, R resamples, Q quotients whose sum is a metric.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grr_coca.evaluate.intervals import draw_resamples, sum_by_image
from grr_coca_study.plan import LOSS_METRICS, Plan, split_endpoint, stage_names
from grr_coca_study.rows import LedgerRow
from grr_coca_study.statistics import RESAMPLES, percentiles

Rows = Mapping[tuple[str, int, str], LedgerRow]
"""Rows by arm, seed and stage."""
Interval = tuple[float, float]
"""Ends of an interval, in per cent."""

# --- Names

_METRICS = {
    "contrastive_loss": "contrastive loss",
    "contrastive_loss_refitted": "contrastive loss, refitted temperature",
    "captioning_loss": "captioning loss",
    "coca_loss": "CoCa loss",
    **{f"R@{k}": f"R@{k}, text to image" for k in (1, 5, 10)},
    **{f"image_to_text/R@{k}": f"R@{k}, image to text" for k in (1, 5, 10)},
}
"""Display names of metrics. Other metrics are displayed by their ledger key."""
PHASES = {"pretraining": "after pretraining", "finetuning": "after fine-tuning"}


def metric_title(endpoint: str) -> str:
    """Return the display name of an endpoint's metric."""
    metric = split_endpoint(endpoint)[1]
    return _METRICS.get(metric, metric)


def title(endpoint: str) -> str:
    """Return the display name of an endpoint, such as `CoCa loss after pretraining`."""
    return f"{metric_title(endpoint)} {PHASES[split_endpoint(endpoint)[0]]}"


def lower_is_better(endpoint: str) -> bool:
    """Return whether lower values of an endpoint are better: true for losses and perplexity, false for recalls and
    caption scores.
    """
    return split_endpoint(endpoint)[1] in LOSS_METRICS


# --- Values


def stages_of(plan: Plan, endpoint: str) -> tuple[str, ...]:
    """Return the stages after which an endpoint is measured."""
    pretraining, *finetunings = stage_names(plan)
    return (pretraining,) if split_endpoint(endpoint)[0] == "pretraining" else tuple(finetunings)


def value_of(row: LedgerRow | None, plan: Plan, endpoint: str) -> float | None:
    """Return the value of an endpoint in a row, or None if it has no logarithm.

    A value has no logarithm if it is missing, NaN, infinite, or not above zero. If `row` is None, the value is missing.
    """
    metrics = row.metrics.get(plan.endpoints.split, {}) if row else {}
    value = metrics.get(split_endpoint(endpoint)[1], 0.0)
    return value if 0 < value < math.inf else None


def endpoint_values(rows: Rows, plan: Plan, endpoint: str, arm: str) -> dict[int, float]:
    """Return the values of an arm's endpoint by seed, in plan order. Seeds without a value are omitted.

    For fine-tuning, a value is the geometric mean over the stages, so that the log ratio of two values is the mean of
    the stages' log ratios.
    """
    found = {}
    for seed in plan.seeds:
        stages = [value_of(rows.get((arm, seed, stage)), plan, endpoint) for stage in stages_of(plan, endpoint)]
        values = [value for value in stages if value is not None]
        if len(values) == len(stages):
            found[seed] = math.exp(sum(map(math.log, values)) / len(values))
    return found


# --- Intervals over images


class ImageIntervals(NamedTuple):
    """95 % intervals of a change: over images, and over seeds and images together (None for a single seed)."""

    over_images: Interval | None = None
    over_both: Interval | None = None


def image_intervals(
    metric: str, split: str, stages: Sequence[tuple[Sequence[LedgerRow], Sequence[LedgerRow]]]
) -> ImageIntervals:
    """Return the intervals of a change over the images of a test split.

    The interval over images treats the trained models as fixed. It is computed by a paired bootstrap (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): images with all their captions, or batches, are
    resampled with replacement, in the same way for both arms and all seeds, and the change is computed again. Captions
    are not resampled separately, because the captions of an image are similar, which would make the interval too
    narrow. For the CoCa loss, batches are resampled with their captions. Stages are resampled independently. Log ratios
    are averaged over the seeds for which they are defined, because the recall in a resample may be zero.

    The interval over seeds and images also covers the variation between trained models. For this interval, the seeds
    are also resampled, crossed with the images (pigeonhole bootstrap: Owen, The Annals of Applied Statistics 1, 2007).
    This counts the noise of single images with single seeds more than once, which makes the interval wider; percentiles
    over few seeds make it narrower.

    Args:
        metric: Key of the metric in the rows.
        split: The test split.
        stages: For each stage, the rows of the arm and of the baseline, in the same order of seeds.

    Returns:
        The intervals. They are None if there are no seeds, if values are missing in the rows, or if a log ratio is
        undefined for all seeds of a resample.
    """
    num_seeds = len(stages[0][0])
    if not num_seeds:
        return ImageIntervals()
    logs = np.zeros((RESAMPLES, num_seeds))
    for number, (arm, baseline) in enumerate(stages):
        try:
            columns = np.stack([contributions(row, metric, split) for row in (*arm, *baseline)], axis=1)  # N × 2S × 2Q
        except (KeyError, ValueError):  # values are missing, or differ in number
            return ImageIntervals()
        if not np.isfinite(columns).all():
            return ImageIntervals()
        logs += _resampled_log_ratios(metric, columns, number) / len(stages)
    drawn = np.random.default_rng(0).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES)
    over_both = _interval_of_mean(logs, drawn) if num_seeds > 1 else None
    return ImageIntervals(_interval_of_mean(logs, np.ones(logs.shape)), over_both)


def _resampled_log_ratios(metric: str, columns: np.ndarray, seed: int) -> np.ndarray:
    """Return the log ratio of arm to baseline for each resample and seed (R × S). Undefined values are NaN.

    `seed` is the seed of the resampling.
    """
    num_images, num_rows, _ = columns.shape
    drawn = draw_resamples(num_images, RESAMPLES, seed)
    sums = np.concatenate([each @ columns.reshape(num_images, -1) for each in drawn])
    logs = (sums[:, 0::2] / sums[:, 1::2]).reshape(RESAMPLES, num_rows, -1).sum(axis=-1)  # R × 2S
    if metric != "perplexity":  # perplexity is exp(nats per token)
        logs = np.log(logs, where=logs > 0, out=np.full_like(logs, np.nan))
    return logs[:, : num_rows // 2] - logs[:, num_rows // 2 :]


def _interval_of_mean(logs: np.ndarray, drawn: np.ndarray) -> Interval | None:
    """Return the 95 % interval, in per cent, of the mean over seeds of log ratios (R × S).

    Each seed counts as often as it was sampled. Return None if a resample has no defined log ratio.
    """
    weights = np.where(np.isfinite(logs), drawn, 0)
    if not weights.any(axis=1).all():
        return None
    return percentiles(np.sum(np.nan_to_num(logs) * weights, axis=1) / weights.sum(axis=1))


_SINGLE = {
    "contrastive_loss": "contrastive_batches",
    "contrastive_loss_refitted": "contrastive_batches_refitted",
    "CIDEr-D": "cider_d",
}
"""Metrics that are means of one value per image or batch, and the keys of these values in a row."""


def contributions(row: LedgerRow, metric: str, split: str) -> np.ndarray:
    """Return the contributions (N × 2Q) of each image or batch to the numerators and denominators of a metric's
    quotients.

    Raises:
        KeyError: If the row does not have the values.
        ValueError: If the values differ in number, or the CoCa loss of the row has other weights.
    """
    values = row.values[split]
    if metric == "coca_loss":
        return _sums_per_batch(values, row.metrics[split])
    if metric == "R@1":
        return _sums_per_image(values, np.array(values["rank"]) == 0, np.ones(len(values["rank"])))
    if metric in ("captioning_loss", "perplexity"):
        return _sums_per_image(values, values["nll"], values["tokens"])
    single = values[_SINGLE[metric]]
    return np.stack([single, np.ones(len(single))], axis=1)


def _sums_per_image(values: Mapping[str, Any], numerator: Any, denominator: Any) -> np.ndarray:
    """Return the summed contributions of each image's captions. If `values` has no `image`, each image has one
    caption.
    """
    columns = np.stack([numerator, denominator], axis=1).astype(float)
    return sum_by_image(columns, np.array(values["image"])) if "image" in values else columns


def _sums_per_batch(values: Mapping[str, Any], metrics: Mapping[str, float]) -> np.ndarray:
    """Return the contrastive loss of each batch, and the nats and tokens of its captions, weighted as in the CoCa
    loss.

    The last batch is filled up with captions from the previous one, which do not count again.
    """
    from grr_coca.evaluate.split import contrastive_batches  # lazy import: PyTorch
    from grr_coca.model.losses import LossWeights, coca_loss

    weights = LossWeights()
    expected = coca_loss(metrics["contrastive_loss"], metrics["captioning_loss"], weights)
    if not math.isclose(metrics["coca_loss"], expected, rel_tol=1e-6):
        raise ValueError("the loss weights must be the defaults")
    contrastive, nll = np.array(values["contrastive_batches"]), np.array(values["nll"])
    batch_of = np.empty(len(nll), dtype=int)
    batches = contrastive_batches(len(nll), int(metrics["contrastive_batch_size"]))
    for number, captions in reversed(list(enumerate(batches))):
        batch_of[captions.numpy()] = number
    nats, tokens = sum_by_image(np.stack([nll, values["tokens"]], axis=1), batch_of).T
    columns = [weights.contrastive * contrastive, np.ones(len(contrastive)), weights.captioning * nats, tokens]
    return np.stack(columns, axis=1)
