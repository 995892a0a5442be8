"""How far a change depends on the images of the test split: intervals over images, seeds held as they are.

An interval over seeds says what other seeds would give on the same images; this one, what other images would give with
the same trained models. Images (captions, batches) are drawn with replacement, the same ones for both arms, and the
change is computed anew (paired bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
The captions of an image are drawn with it: they resemble one another, and drawn one by one they would seem to say more.

Shapes: N images, S seeds, R resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np

from grr_coca.evaluate.bootstrap import by_image, draws
from grr_coca.study.plan.plan import Plan
from grr_coca.study.report.numbers.metrics import Endpoint, Rows, stages_of
from grr_coca.study.statistics.paired import LEVEL, as_percent

RESAMPLES = 2000

Values = dict[str, list]
Statistics = tuple[np.ndarray, np.ndarray]
"""What each image adds to a numerator and to a denominator: N each."""


def _per_batch(name: str) -> Callable[[Values], Statistics]:
    return lambda values: (np.array(values[name]), np.ones(len(values[name])))


def _hits(values: Values) -> Statistics:
    return _of_images(values, (np.array(values["rank"]) == 0).astype(float), np.ones(len(values["rank"])))


def _nats(values: Values) -> Statistics:
    return _of_images(values, np.array(values["nll"]), np.array(values["tokens"], dtype=float))


def _of_images(values: Values, numerator: np.ndarray, denominator: np.ndarray) -> Statistics:
    """What the captions of each image add together. Without `image`, each caption has an image of its own."""
    if "image" not in values:
        return numerator, denominator
    images = np.array(values["image"])
    return by_image(numerator, images), by_image(denominator, images)


STATISTICS: dict[str, Callable[[Values], Statistics]] = {
    "contrastive_loss": _per_batch("contrastive_batches"),
    "contrastive_loss_refitted": _per_batch("contrastive_batches_refitted"),
    "captioning_loss": _nats,
    "perplexity": _nats,
    "R@1": _hits,
    "CIDEr-D": _per_batch("cider_d"),
}
"""How the values of a row make an endpoint. The CoCa loss is of batches and of captions, and has no interval here."""


def interval_over_images(
    rows: Rows, plan: Plan, endpoint: Endpoint, arm: str, seeds: Sequence[int]
) -> tuple[float, float] | None:
    """The 95 % interval of a change in per cent over images of the test split.

    A draw is the same for the models of all seeds, the stages of fine-tuning are drawn each by itself. As in the change
    itself, log ratios are averaged over the seeds that have one: a draw may hold no image that a model found.

    Args:
        rows: by arm, seed and stage.
        plan: names baseline, stages and split.
        endpoint: what is compared.
        arm: compared with the baseline.
        seeds: those that both arms have.

    Returns:
        None if there are no seeds, the rows have no such values, or a draw leaves no seed with a ratio.
    """
    if endpoint.metric not in STATISTICS or not seeds:
        return None
    logs = np.zeros((RESAMPLES, len(seeds)))
    stages = stages_of(plan, endpoint)
    for place, stage in enumerate(stages):
        sides = [_statistics(rows, plan, endpoint, side, seeds, stage) for side in (arm, plan.baseline)]
        if sides[0] is None or sides[1] is None or len(sides[0]) != len(sides[1]):
            return None
        logs += _resampled_log_ratios(endpoint, sides[0], sides[1], place) / len(stages)
    known = np.isfinite(logs)
    if not known.any(axis=1).all():
        return None
    low, high = np.quantile(logs.mean(axis=1, where=known), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(as_percent(low)), float(as_percent(high))


def _statistics(
    rows: Rows, plan: Plan, endpoint: Endpoint, arm: str, seeds: Sequence[int], stage: str
) -> np.ndarray | None:
    """What each image adds to numerator and denominator, N × S × 2; None where a row has no such values."""
    found = [rows[arm, seed, stage].values.get(plan.endpoints.split, {}) for seed in seeds]
    try:
        statistics = [np.stack(STATISTICS[endpoint.metric](values), axis=1) for values in found]
    except (KeyError, ValueError):  # none were kept, or not as many of one kind as of the other
        return None
    if len({len(of_seed) for of_seed in statistics}) != 1 or not all(np.isfinite(found).all() for found in statistics):
        return None
    return np.stack(statistics, axis=1)


def _resampled_log_ratios(endpoint: Endpoint, arm: np.ndarray, baseline: np.ndarray, draw: int) -> np.ndarray:
    """Log of arm over baseline for each draw of images and each seed, R × S; NaN where there is no ratio."""
    sides = np.stack([arm, baseline], axis=1)  # N × 2 × S × 2
    columns = sides.reshape(len(sides), -1)
    sums = np.concatenate([drawn @ columns for drawn in draws(len(columns), RESAMPLES, draw)])
    quotients = (sums[:, 0::2] / sums[:, 1::2]).reshape(RESAMPLES, 2, -1)  # R × 2 × S
    if endpoint.metric == "perplexity":  # the exponential of nats a token
        return quotients[:, 0] - quotients[:, 1]
    logs = np.log(quotients, where=quotients > 0, out=np.full_like(quotients, np.nan))
    return logs[:, 0] - logs[:, 1]
