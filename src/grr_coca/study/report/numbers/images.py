"""How far a change depends on the images of the test split: intervals over images, seeds held as they are.

An interval over seeds says what other seeds would give on the same images; this one, what other images would give with
the same trained models. Images (captions, batches) are drawn with replacement, the same ones for both arms, and the
change is computed anew (paired bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from collections.abc import Callable, Sequence

import numpy as np

from grr_coca.evaluate.bootstrap import draws
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
    return (np.array(values["rank"]) == 0).astype(float), np.ones(len(values["rank"]))


def _nats(values: Values) -> Statistics:
    return np.array(values["nll"]), np.array(values["tokens"], dtype=float)


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

    The models of all seeds are taken together, the stages of fine-tuning drawn each by itself.

    Args:
        rows: by arm, seed and stage.
        plan: names baseline, stages and split.
        endpoint: what is compared.
        arm: compared with the baseline.
        seeds: those that both arms have.

    Returns:
        None if there are no seeds, or the rows have no such values.
    """
    if endpoint.metric not in STATISTICS or not seeds:
        return None
    logs = np.zeros(RESAMPLES)
    stages = stages_of(plan, endpoint)
    for place, stage in enumerate(stages):
        sides = [_summed(rows, plan, endpoint, side, seeds, stage) for side in (arm, plan.baseline)]
        if sides[0] is None or sides[1] is None or len(sides[0][0]) != len(sides[1][0]):
            return None
        logs += _resampled_log_ratio(endpoint, sides[0], sides[1], place) / len(stages)
    if not np.isfinite(logs).all():
        return None
    low, high = np.quantile(logs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(as_percent(low)), float(as_percent(high))


def _summed(
    rows: Rows, plan: Plan, endpoint: Endpoint, arm: str, seeds: Sequence[int], stage: str
) -> Statistics | None:
    """What each image adds, summed over seeds; None where a row has no such values."""
    found = [rows[arm, seed, stage].values.get(plan.endpoints.split, {}) for seed in seeds]
    try:
        statistics = [STATISTICS[endpoint.metric](values) for values in found]
    except KeyError:
        return None
    if len({len(numerator) for numerator, _ in statistics}) > 1:
        return None
    return np.sum([s[0] for s in statistics], axis=0), np.sum([s[1] for s in statistics], axis=0)


def _resampled_log_ratio(endpoint: Endpoint, arm: Statistics, baseline: Statistics, seed: int) -> np.ndarray:
    """Log of arm over baseline, once for each draw of images."""
    columns = np.stack([*arm, *baseline], axis=1)
    sums = np.concatenate([drawn @ columns for drawn in draws(len(columns), RESAMPLES, seed)])
    mine, theirs = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
    if endpoint.metric == "perplexity":
        return mine - theirs  # perplexity is the exponential of nats a token
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(mine) - np.log(theirs)
