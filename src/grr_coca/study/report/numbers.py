"""The results of a study in numbers, computed from its plan and its ledger: `study_results`.

Its parts come first: endpoints and their values, effects over seeds, costs, intervals over images.

Shapes: N images, S seeds, R resamples, Q quotients that a metric is the sum of.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np

from grr_coca.evaluate.intervals import by_image, draws
from grr_coca.study.ledger import Ledger
from grr_coca.study.plan import LOSS_METRICS, Plan, lacking_scores, split_endpoint, stage_names
from grr_coca.study.rows import LedgerRow
from grr_coca.study.statistics import (
    LEVEL,
    RESAMPLES,
    Numbers,
    as_percent,
    holm,
    is_equivalent,
    log_ratios,
    min_seeds,
    smallest_detectable_effect,
    t_interval,
    t_test_p,
)

# --- Endpoints

_TITLES = {
    "contrastive_loss": "contrastive loss",
    "contrastive_loss_refitted": "contrastive loss, refitted temperature",
    "captioning_loss": "captioning loss",
    "perplexity": "perplexity",
    "coca_loss": "CoCa loss",
    **{f"R@{k}": f"R@{k}, text to image" for k in (1, 5, 10)},
    **{f"image_to_text/R@{k}": f"R@{k}, image to text" for k in (1, 5, 10)},
}
"""Display names of metrics; all others have their key in the ledger."""

PHASE_TITLES = {"pretraining": "after pretraining", "finetuning": "after fine-tuning"}

Rows = Mapping[tuple[str, int, str], LedgerRow]
"""Rows by arm, seed and stage."""


@dataclass(frozen=True)
class Endpoint:
    """A metric after a phase of training, by its name in a plan: `pretraining/coca_loss`."""

    name: str

    @property
    def phase(self) -> str:
        """`pretraining` or `finetuning`."""
        return split_endpoint(self.name)[0]

    @property
    def metric(self) -> str:
        """Key of the metric in the rows of a ledger."""
        return split_endpoint(self.name)[1]

    @property
    def title(self) -> str:
        """Display name of the metric."""
        return _TITLES.get(self.metric, self.metric)

    @property
    def full_title(self) -> str:
        """Display name of metric and phase."""
        return f"{self.title} {PHASE_TITLES[self.phase]}"

    @property
    def lower_is_better(self) -> bool:
        """True for losses, False for recalls and caption scores."""
        return self.metric in LOSS_METRICS


def rows_by_run(rows: Sequence[LedgerRow]) -> dict[tuple[str, int, str], LedgerRow]:
    """Index rows by arm, seed and stage."""
    return {(row.arm, row.seed, row.stage): row for row in rows}


def stages_of(plan: Plan, endpoint: Endpoint) -> tuple[str, ...]:
    """The stages on which an endpoint is measured."""
    pretraining, *finetunings = stage_names(plan)
    return (pretraining,) if endpoint.phase == "pretraining" else tuple(finetunings)


def _endpoint_value(rows: Rows, plan: Plan, endpoint: Endpoint, arm: str, seed: int) -> float | None:
    """Value of an endpoint for one arm and seed. For fine-tuning, it is the geometric mean over the stages.

    The log ratio of two such values is the mean of the stages' log ratios.

    Returns:
        None if a stage is missing, or a value is NaN, infinite or not above zero, and so has no log ratio.
    """
    logs = []
    for stage in stages_of(plan, endpoint):
        row = rows.get((arm, seed, stage))
        value = row.metrics.get(plan.endpoints.split, {}).get(endpoint.metric, 0.0) if row else 0.0
        if not 0 < value < math.inf:
            return None
        logs.append(math.log(value))
    return math.exp(sum(logs) / len(logs))


def endpoint_values(rows: Rows, plan: Plan, endpoint: Endpoint, arm: str) -> dict[int, float]:
    """Values of an endpoint of one arm by seed, in the plan's order; seeds without a value are left out."""
    found = {seed: _endpoint_value(rows, plan, endpoint, arm, seed) for seed in plan.seeds}
    return {seed: value for seed, value in found.items() if value is not None}


# --- Effects over seeds


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A change in per cent over several seeds. Fields that need two seeds are None for a single one.

    - `changes`: of each of the `seeds`; `change`: from the mean of their log ratios
    - `low`, `high`: 95 % t interval
    - `p_t`: two-sided p of the t test, not corrected for several endpoints
    - `deviation`: standard deviation over seeds
    - `is_equivalent`: the interval lies within ± 2 %
    """

    seeds: tuple[int, ...]
    changes: tuple[float, ...]
    change: float
    low: float | None
    high: float | None
    p_t: float | None
    deviation: float | None
    is_equivalent: bool

    @property
    def num_seeds(self) -> int:
        """Number of seeds."""
        return len(self.seeds)

    @property
    def excludes_zero(self) -> bool:
        """True if the interval does not contain zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def effect_of(log_ratio_by_seed: Mapping[int, float]) -> Effect | None:
    """The effect from a log ratio for each seed; None without seeds."""
    if not log_ratio_by_seed:
        return None
    values = np.array(list(log_ratio_by_seed.values()))
    low, high = t_interval(values)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Effect(
        seeds=tuple(log_ratio_by_seed),
        changes=tuple(np.asarray(as_percent(values)).tolist()),
        change=float(as_percent(values.mean())),
        low=_number(as_percent(low)),
        high=_number(as_percent(high)),
        p_t=_number(t_test_p(values)),
        deviation=_number(100 * deviation),
        is_equivalent=is_equivalent(float(low), float(high)),
    )


def _number(value: Numbers) -> float | None:
    return float(value) if np.isfinite(value) else None


# --- Parts

PARTS = ("RMSNorm", "GEGLU", "RoPE")
PARTS_OF_PRESET: dict[str, frozenset[str]] = {
    "baseline_coca": frozenset(),
    "baseline_rms": frozenset({"RMSNorm"}),
    "baseline_geglu": frozenset({"GEGLU"}),
    "baseline_rope_2d": frozenset({"RoPE"}),
    "baseline_rms_geglu": frozenset({"RMSNorm", "GEGLU"}),
    "baseline_rms_rope_2d": frozenset({"RMSNorm", "RoPE"}),
    "baseline_geglu_rope_2d": frozenset({"GEGLU", "RoPE"}),
    "grr_coca": frozenset(PARTS),
}
"""Parts of GRR-CoCa in the image encoders of presets that are Baseline CoCa otherwise."""


def _deciding_p(effect: Effect | None, num_tests: int) -> float:
    """p of the t test, not corrected; NaN without enough seeds for a verdict in one of `num_tests` tests."""
    if effect is None or effect.p_t is None or effect.num_seeds < min_seeds(num_tests):
        return math.nan
    return effect.p_t


# --- Cost


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """Costs of an arm. `flops_per_pair`: of one forward pass with a caption of maximum length.

    `training_flops`: of all steps, by stage. `seconds`: of training and evaluation, by stage, median over seeds and
    machines.
    """

    arm: str
    parameters: int
    image_encoder_parameters: int
    flops_per_pair: int
    training_flops: dict[str, int]
    seconds: dict[str, float]


def _arm_costs(plan: Plan, rows: Sequence[LedgerRow]) -> tuple[ArmCost, ...]:
    """Costs of all arms that have rows, in the plan's order."""
    return tuple(_cost(plan, arm.name, rows) for arm in plan.arms if any(row.arm == arm.name for row in rows))


def _cost(plan: Plan, arm: str, rows: Sequence[LedgerRow]) -> ArmCost:
    own = [row for row in rows if row.arm == arm]
    stages = {stage: [row for row in own if row.stage == stage] for stage in stage_names(plan)}
    return ArmCost(
        arm=arm,
        parameters=own[0].parameters,
        image_encoder_parameters=own[0].image_encoder_parameters,
        flops_per_pair=own[0].flops_per_pair,
        training_flops={stage: found[0].training_flops or 0 for stage, found in stages.items() if found},
        seconds={stage: median(row.seconds for row in found) for stage, found in stages.items() if found},
    )


# --- Intervals over images

Values = dict[str, list]
Metrics = Mapping[str, float]
Statistics = tuple[np.ndarray, ...]
"""Contributions of each image, or batch, to the numerator and to the denominator of a metric: N each. The CoCa loss is
a sum of two quotients, and has two such pairs."""


def _per_batch(name: str) -> Callable[[Values, Metrics], Statistics]:
    return lambda values, _: (np.array(values[name]), np.ones(len(values[name])))


def _hits(values: Values, _: Metrics) -> Statistics:
    return _of_images(values, (np.array(values["rank"]) == 0).astype(float), np.ones(len(values["rank"])))


def _nats(values: Values, _: Metrics) -> Statistics:
    return _of_images(values, np.array(values["nll"]), np.array(values["tokens"], dtype=float))


def _of_images(values: Values, numerator: np.ndarray, denominator: np.ndarray) -> Statistics:
    """Sum the contributions of each image's captions. Without `image`, each image has one caption."""
    if "image" not in values:
        return numerator, denominator
    images = np.array(values["image"])
    return by_image(numerator, images), by_image(denominator, images)


def _both_losses(values: Values, metrics: Metrics) -> Statistics:
    """The contrastive loss of each batch, and the nats and tokens of its captions, each weighted as in the CoCa loss.

    The last batch is filled up with captions of the one before, which do not count again.

    Raises:
        ValueError: the CoCa loss of the row has other weights.
    """
    from grr_coca.evaluate.split import contrastive_batches  # late: torch
    from grr_coca.model.losses import LossWeights, coca_loss

    weights = LossWeights()
    if not math.isclose(
        metrics["coca_loss"],
        coca_loss(metrics["contrastive_loss"], metrics["captioning_loss"], weights),
        rel_tol=1e-6,
    ):
        raise ValueError("the weights of the losses are not the defaults")
    contrastive, nll = np.array(values["contrastive_batches"]), np.array(values["nll"])
    batch_of = np.empty(len(nll), dtype=int)
    batches = contrastive_batches(len(nll), int(metrics["contrastive_batch_size"]))
    for number, captions in reversed(list(enumerate(batches))):
        batch_of[captions.numpy()] = number
    return (
        weights.contrastive * contrastive,
        np.ones(len(contrastive)),
        weights.captioning * by_image(nll, batch_of),
        by_image(np.array(values["tokens"], dtype=float), batch_of),
    )


STATISTICS: dict[str, Callable[[Values, Metrics], Statistics]] = {
    "contrastive_loss": _per_batch("contrastive_batches"),
    "contrastive_loss_refitted": _per_batch("contrastive_batches_refitted"),
    "captioning_loss": _nats,
    "perplexity": _nats,
    "coca_loss": _both_losses,
    "R@1": _hits,
    "CIDEr-D": _per_batch("cider_d"),
}
"""Contributions to each metric from the values and metrics of a row."""


class ImageIntervals(NamedTuple):
    """95 % intervals of a change in per cent: over images, and over seeds and images at once (None for one seed)."""

    over_images: tuple[float, float]
    over_both: tuple[float, float] | None


def image_intervals(
    rows: Rows, plan: Plan, endpoint: Endpoint, arm: str, seeds: Sequence[int]
) -> ImageIntervals | None:
    """Intervals of a change over images of the test split.

    Over images is for the same trained models. It is a paired bootstrap (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13): images with all their captions, or batches, are drawn with replacement, the same for
    both arms and all seeds, and the change is computed again. Captions are not drawn one by one, since those of an
    image resemble each other, and the interval would be too narrow. For the CoCa loss, batches are drawn with their
    captions. Fine-tunings are drawn independently. Log ratios are averaged over the seeds that have one: a draw may
    have a recall of zero.

    Over seeds and images speaks of other models and other images at once. It draws the seeds too, crossed with the
    images (pigeonhole bootstrap: Owen, The Annals of Applied Statistics 1, 2007). It counts the noise of single images
    with single seeds more than once, which makes it wider; percentiles over few seeds make it narrower.

    Args:
        rows: rows by arm, seed and stage.
        plan: names baseline, stages and split.
        endpoint: the endpoint.
        arm: the arm that is compared with the baseline.
        seeds: the seeds that both arms have.

    Returns:
        None without seeds, without values in the rows, or if no seed has a log ratio in some draw.
    """
    if endpoint.metric not in STATISTICS or not seeds:
        return None
    logs = np.zeros((RESAMPLES, len(seeds)))
    stages = stages_of(plan, endpoint)
    for place, stage in enumerate(stages):
        sides = [_contributions(rows, plan, endpoint, side, seeds, stage) for side in (arm, plan.baseline)]
        if sides[0] is None or sides[1] is None or len(sides[0]) != len(sides[1]):
            return None
        logs += _resampled_log_ratios(endpoint, sides[0], sides[1], place) / len(stages)
    if not np.isfinite(logs).any(axis=1).all():
        return None
    over_images = _quantiles(logs, np.ones(logs.shape))
    assert over_images is not None
    drawn = np.random.default_rng(0).multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=len(logs))
    return ImageIntervals(over_images, _quantiles(logs, drawn) if len(seeds) > 1 else None)


def _quantiles(logs: np.ndarray, drawn: np.ndarray) -> tuple[float, float] | None:
    """Percentile interval in per cent of the mean log ratio over seeds, R × S, each counted as often as it was drawn.

    None if some draw has no log ratio.
    """
    weights = np.where(np.isfinite(logs), drawn, 0)
    if not weights.any(axis=1).all():
        return None
    means = np.sum(np.nan_to_num(logs) * weights, axis=1) / weights.sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(as_percent(low)), float(as_percent(high))


def _contributions(
    rows: Rows, plan: Plan, endpoint: Endpoint, arm: str, seeds: Sequence[int], stage: str
) -> np.ndarray | None:
    """What each image adds to numerators and denominators of a metric, N × S × 2Q; None if a row lacks the values."""
    split, found = plan.endpoints.split, [rows[arm, seed, stage] for seed in seeds]
    measured = [(row.values.get(split, {}), row.metrics.get(split, {})) for row in found]
    try:
        statistics = [np.stack(STATISTICS[endpoint.metric](*row), axis=1) for row in measured]
    except (KeyError, ValueError):  # values are missing, or differ in number
        return None
    if len({len(of_seed) for of_seed in statistics}) != 1 or not all(np.isfinite(found).all() for found in statistics):
        return None
    return np.stack(statistics, axis=1)


def _resampled_log_ratios(endpoint: Endpoint, arm: np.ndarray, baseline: np.ndarray, draw: int) -> np.ndarray:
    """Log of arm over baseline for each draw and seed, R × S; NaN if it is undefined."""
    sides = np.stack([arm, baseline], axis=1)  # N × 2 × S × 2Q
    columns = sides.reshape(len(sides), -1)
    sums = np.concatenate([drawn @ columns for drawn in draws(len(columns), RESAMPLES, draw)])
    quotients = (sums[:, 0::2] / sums[:, 1::2]).reshape(RESAMPLES, *sides.shape[1:3], -1).sum(axis=-1)  # R × 2 × S
    if endpoint.metric == "perplexity":  # exp(nats per token)
        return quotients[:, 0] - quotients[:, 1]
    logs = np.log(quotients, where=quotients > 0, out=np.full_like(quotients, np.nan))
    return logs[:, 0] - logs[:, 1]


# --- Results

_NEAR_CHANCE = 0.95
"""A contrastive loss above this share of that of guessing says nothing."""

Run = tuple[str, int, str]
"""Arm, seed and stage."""


@dataclass(frozen=True, kw_only=True)
class EndpointResult:
    """An endpoint of one arm against the baseline, over the seeds that both have.

    - `arm_value`, `baseline_value`: geometric means over seeds
    - `effect`: None if no seed has both values
    - `over_images`: 95 % interval in per cent over images of the test split; None if the ledger lacks the values
    - `over_both`: the same over seeds and images at once; None for a single seed too
    - `p_holm`: of the t test with Holm's correction for all primary endpoints; None for secondary ones, and with too
      few seeds for a verdict
    - `with_choice`: 95 % interval in per cent over seeds, in which each draw of seeds chooses the settings; None if
      they were not chosen with these seeds
    - `smallest_shown`: smallest detectable effect in per cent (80 % power), with as many seeds and this deviation; None
      as for `p_holm`
    """

    endpoint: str
    is_primary: bool
    arm_value: float | None
    baseline_value: float | None
    effect: Effect | None
    over_images: tuple[float, float] | None
    over_both: tuple[float, float] | None = None
    p_holm: float | None = None
    with_choice: tuple[float, float] | None = None
    smallest_shown: float | None = None


@dataclass(frozen=True, kw_only=True)
class ArmResults:
    """The endpoints of one arm against the baseline, the primary ones first."""

    arm: str
    endpoints: tuple[EndpointResult, ...]


@dataclass(frozen=True, kw_only=True)
class NearChance:
    """A stage after which the contrastive loss of the first arm or of the baseline says nothing.

    It is at least 95 % of `chance`, the loss of a model that guesses, as the geometric mean over seeds. `chance` is the
    logarithm of the number of pairs in a batch.
    """

    stage: str
    batch_size: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """All results of a study in numbers; the content of `results.json`.

    - `num_rows`: finished stages; `num_planned_rows`: stages of the plan without the lost ones
    - `num_seeds`: seeds with all stages of the first arm and of the baseline; `num_planned_seeds`: of the plan. Effects
      have their own number of seeds
    - `missing`: unfinished stages, by arm and seed, in words
    - `lost`: stages that diverged, or whose pretraining did. `num_lost_seeds`: seeds with a lost stage of the first arm
      or of the baseline
    - `near_chance`: stages whose contrastive loss is hardly better than guessing
    - `notes`: sentences on rows that do not count, and on values that are missing
    """

    baseline: str
    stages: tuple[str, ...]
    split: str
    num_rows: int
    num_planned_rows: int
    num_seeds: int
    num_planned_seeds: int
    num_lost_seeds: int
    missing: tuple[str, ...]
    lost: tuple[str, ...]
    arms: tuple[ArmResults, ...]
    near_chance: tuple[NearChance, ...]
    costs: tuple[ArmCost, ...]
    machines: tuple[str, ...]
    precisions: tuple[str, ...]
    commits: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def begun_arms(self) -> tuple[ArmResults, ...]:
        """Arms with a primary endpoint that can be compared with the baseline."""
        return tuple(arm for arm in self.arms if any(r.effect for r in arm.endpoints if r.is_primary))

    @property
    def is_complete(self) -> bool:
        """True if every planned stage is finished or lost."""
        return self.num_rows == self.num_planned_rows

    @property
    def num_awaited_seeds(self) -> int:
        """Number of seeds that the first arm or the baseline has not finished yet."""
        return self.num_planned_seeds - self.num_seeds - self.num_lost_seeds


def study_results(plan: Plan, ledger: Ledger) -> StudyResults:
    """Compare every arm of a study with the baseline."""
    rows = rows_by_run(ledger.rows)
    others = [arm.name for arm in plan.arms if arm.name != plan.baseline]
    stages = stage_names(plan)
    whole = {key for key, row in rows.items() if key not in ledger.lacking and not lacking_scores(plan, row)}
    lost = _lost_runs(ledger, rows, stages)
    lost_in_words = _by_arm(plan, lambda key: key in lost)
    planned = [(arm.name, seed, stage) for arm in plan.arms for seed in plan.seeds for stage in stages]
    compared = {seed: [(arm, seed, t) for arm in (others[0], plan.baseline) for t in stages] for seed in plan.seeds}
    complete = [seed for seed, keys in compared.items() if all(key in rows for key in keys)]
    return StudyResults(
        baseline=plan.baseline,
        stages=stages,
        split=plan.endpoints.split,
        num_rows=sum(key in whole for key in planned),
        num_planned_rows=sum(key not in lost for key in planned),
        num_seeds=len(complete),
        num_planned_seeds=len(plan.seeds),
        num_lost_seeds=sum(any(key in lost for key in keys) for keys in compared.values()),
        missing=_by_arm(plan, lambda key: key not in whole and key not in lost),
        lost=lost_in_words,
        arms=tuple(ArmResults(arm=arm, endpoints=_endpoints(rows, plan, arm)) for arm in others),
        near_chance=_near_chance(rows, plan, (others[0], plan.baseline)),
        costs=_arm_costs(plan, ledger.rows),
        machines=_distinct(row.machine for row in ledger.rows),
        precisions=_distinct(row.precision for row in ledger.rows),
        commits=_distinct(row.commit for row in ledger.rows),
        notes=(*ledger.notes, *(f"diverged, {line}" for line in lost_in_words), *_without_ratio(rows, plan)),
    )


def _endpoints(rows: Rows, plan: Plan, arm: str) -> tuple[EndpointResult, ...]:
    primary = [_endpoint(rows, plan, arm, name, is_primary=True) for name in plan.endpoints.primary]
    found = [_deciding_p(result.effect, len(primary)) for result in primary]
    adjusted = holm(np.array(found))
    corrected = [
        replace(result, p_holm=_number(p), smallest_shown=_smallest_detectable(result.effect, len(primary)))
        for result, p in zip(primary, adjusted, strict=True)
    ]
    secondary = [_endpoint(rows, plan, arm, name, is_primary=False) for name in plan.endpoints.secondary]
    return (*corrected, *secondary)


def _endpoint(rows: Rows, plan: Plan, arm: str, name: str, *, is_primary: bool) -> EndpointResult:
    values, baseline = (endpoint_values(rows, plan, Endpoint(name), side) for side in (arm, plan.baseline))
    seeds = [seed for seed in values if seed in baseline]
    sides = [np.array([side[seed] for seed in seeds]) for side in (values, baseline)]
    ratios = log_ratios(sides[0], sides[1])
    intervals = image_intervals(rows, plan, Endpoint(name), arm, seeds)
    return EndpointResult(
        endpoint=name,
        is_primary=is_primary,
        arm_value=_geometric_mean(sides[0]),
        baseline_value=_geometric_mean(sides[1]),
        effect=effect_of(dict(zip(seeds, ratios.tolist(), strict=True))),
        over_images=intervals.over_images if intervals else None,
        over_both=intervals.over_both if intervals else None,
    )


def _smallest_detectable(effect: Effect | None, num_endpoints: int) -> float | None:
    if effect is None or effect.deviation is None or effect.num_seeds < min_seeds(num_endpoints):
        return None
    deviations = smallest_detectable_effect(effect.num_seeds, num_endpoints)
    # As a decrease; the equivalent increase is a larger percentage.
    return float(-as_percent(-deviations * effect.deviation / 100))


def _near_chance(rows: Rows, plan: Plan, arms: Sequence[str]) -> tuple[NearChance, ...]:
    found = []
    for stage in stage_names(plan):
        for arm in arms:
            metrics = [
                rows[key].metrics.get(plan.endpoints.split, {}) for s in plan.seeds if (key := (arm, s, stage)) in rows
            ]
            losses = [m["contrastive_loss"] for m in metrics if 0 < m.get("contrastive_loss", 0.0) < math.inf]
            size = int(next((m["contrastive_batch_size"] for m in metrics if "contrastive_batch_size" in m), 0))
            if losses and size > 1 and np.log(losses).mean() >= np.log(_NEAR_CHANCE * math.log(size)):
                found.append(NearChance(stage=stage, batch_size=size, chance=math.log(size)))
                break
    return tuple(found)


def _lost_runs(ledger: Ledger, rows: Rows, stages: Sequence[str]) -> set[Run]:
    """Runs that diverged, and the fine-tunings that would have started from them."""
    lost = {(row.arm, row.seed, row.stage) for row in ledger.diverged}
    lost |= {(arm, seed, t) for arm, seed, stage in lost if stage == stages[0] for t in stages}
    return lost - rows.keys()


def _by_arm(plan: Plan, is_listed: Callable[[Run], bool]) -> tuple[str, ...]:
    """List the planned stages for which `is_listed` is true, in words: a line for each arm and set of stages."""
    lines = []
    for arm in plan.arms:
        listed_stages = {s: [t for t in stage_names(plan) if is_listed((arm.name, s, t))] for s in plan.seeds}
        groups: dict[str, list[str]] = {}
        for seed, stages in listed_stages.items():
            if stages:
                names = "all stages" if len(stages) == len(stage_names(plan)) else ", ".join(stages)
                groups.setdefault(names, []).append(str(seed))
        lines += [
            f"{arm.name}: {names} of {_seeds_in_words(seeds, len(plan.seeds))}" for names, seeds in groups.items()
        ]
    return tuple(lines)


def _seeds_in_words(seeds: list[str], num_planned: int) -> str:
    if len(seeds) == num_planned > 1:
        return f"all {num_planned} seeds"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _without_ratio(rows: Rows, plan: Plan) -> list[str]:
    """Notes on finished stages that have no value of an endpoint, or none with a logarithm."""
    notes = []
    for name in plan.endpoints.all:
        endpoint = Endpoint(name)
        for arm in plan.arms:
            values = endpoint_values(rows, plan, endpoint, arm.name)
            phase = stages_of(plan, endpoint)
            done = [seed for seed in plan.seeds if all((arm.name, seed, stage) in rows for stage in phase)]
            unmeasured = [s for s in done if any(_is_unmeasured(rows[arm.name, s, t], plan, endpoint) for t in phase)]
            zero = [seed for seed in done if seed not in values and seed not in unmeasured]
            for why, seeds in (("not measured", unmeasured), ("NaN, infinite or not above zero", zero)):
                if seeds:
                    notes.append(
                        f"{arm.name}, {endpoint.full_title}: {why} with seeds {', '.join(map(str, seeds))}; these "
                        "seeds are left out of this endpoint"
                    )
    return notes


def _is_unmeasured(row: LedgerRow, plan: Plan, endpoint: Endpoint) -> bool:
    return endpoint.metric not in row.metrics.get(plan.endpoints.split, {})


def _geometric_mean(values: np.ndarray) -> float | None:
    return float(np.exp(np.log(values).mean())) if len(values) else None


def _distinct(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
