"""Results of a study in numbers, computed from its plan and ledger: `study_results`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from grr_coca.evaluate.table import LOSSES, Row, average_row, row
from grr_coca_study.ledger import Ledger
from grr_coca_study.plan import SIGNIFICANCE_LEVEL, Plan, missing_scores, split_endpoint, stage_names
from grr_coca_study.report.endpoints import (
    Interval,
    Rows,
    endpoint_values,
    image_intervals,
    lower_is_better,
    stages_of,
    title,
)
from grr_coca_study.rows import LedgerRow
from grr_coca_study.statistics import (
    Effect,
    as_percent,
    effect_of,
    finite_or_none,
    holm,
    min_seeds,
    smallest_detectable_effect,
)

_NEAR_CHANCE = 0.95
"""Minimum contrastive loss that is uninformative, as a fraction of the loss of random guessing."""

Verdict = Literal["better", "worse", "equal within ±2 %", "undecided", "nothing to compare"]


@dataclass(frozen=True, kw_only=True)
class EndpointResult:
    """Comparison of one arm with the baseline by an endpoint, over the seeds that both have.

    Attributes:
        endpoint: Name of the endpoint, `PHASE/METRIC`.
        is_primary: Whether it is one of the plan's primary endpoints.
        arm_value, baseline_value: Geometric means over the compared seeds. None if no seed has both values.
        effect: Effect over seeds. None if no seed has both values.
        over_images: 95 % interval over images of the test split, in per cent. None if the ledger lacks the values.
        over_both: 95 % interval over seeds and images together, in per cent. Also None for a single seed.
        p_holm: p value of the t test, with Holm's correction for all primary endpoints. None for secondary endpoints,
            and if there are too few seeds for a verdict.
        smallest_shown: Smallest detectable effect (80 % power), in per cent, with the same number of seeds and the same
            standard deviation. None for secondary endpoints, and if there are too few seeds for a verdict.
    """

    endpoint: str
    is_primary: bool
    arm_value: float | None
    baseline_value: float | None
    effect: Effect | None
    over_images: Interval | None
    over_both: Interval | None = None
    p_holm: float | None = None
    smallest_shown: float | None = None

    @property
    def num_seeds(self) -> int:
        """Number of seeds that are compared."""
        return len(self.effect.seeds) if self.effect else 0

    @property
    def verdict(self) -> Verdict:
        """Verdict on the effect.

        The verdict is *better* or *worse* if the t test passes Holm's correction. Secondary endpoints, which the
        correction does not cover, never get these verdicts. The verdict is *equal* if neither of them applies, there
        are enough seeds for a verdict, and the interval is within ± 2 %. It is *nothing to compare* if no seed has both
        values, and otherwise *undecided*.
        """
        if self.effect is None:
            return "nothing to compare"
        if self.p_holm is None:
            return "undecided"
        if self.p_holm <= SIGNIFICANCE_LEVEL:
            return "better" if (self.effect.change < 0) == lower_is_better(self.endpoint) else "worse"
        return "equal within ±2 %" if self.effect.is_equivalent else "undecided"


@dataclass(frozen=True, kw_only=True)
class ArmResults:
    """Comparisons of one arm with the baseline by all endpoints, primary endpoints first."""

    arm: str
    endpoints: tuple[EndpointResult, ...]

    @property
    def primary(self) -> list[EndpointResult]:
        """Primary endpoints."""
        return [result for result in self.endpoints if result.is_primary]


@dataclass(frozen=True, kw_only=True)
class NearChance:
    """Stage after which the contrastive loss of the first arm or of the baseline is uninformative.

    The geometric mean of this loss over seeds is at least 95 % of `chance`, the loss of random guessing. `chance` is
    the logarithm of the number of pairs in a batch.
    """

    stage: str
    batch_size: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """Costs of an arm.

    Attributes:
        parameters, image_encoder_parameters: Numbers of parameters of the model, and of its image encoder.
        flops_per_pair: FLOPs of one forward pass with a caption of maximum length.
        training_flops: FLOPs of all steps, by stage.
        seconds: Duration of training and evaluation, by stage, as the median over seeds and machines.
    """

    arm: str
    parameters: int
    image_encoder_parameters: int
    flops_per_pair: int
    training_flops: dict[str, int]
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """All results of a study in numbers, which `results.json` contains together with `split_rows`.

    Attributes:
        num_rows: Number of finished stages.
        num_planned_rows: Number of planned stages, excluding lost ones.
        num_seeds: Number of seeds with all stages of the first arm and of the baseline.
        num_planned_seeds: Number of seeds in the plan. The number of compared seeds may differ between effects.
        missing: Unfinished stages, by arm and stage, in words.
        lost: Stages that diverged, or whose pretraining diverged.
        num_lost_seeds: Number of seeds with a lost stage of the first arm or of the baseline.
        near_chance: Stages whose contrastive loss is barely better than guessing.
        notes: Sentences about rows that do not count, and about missing values.
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
    def pair(self) -> tuple[str, str]:
        """Names of the first arm, which is the subject of a report, and of the baseline."""
        return self.arms[0].arm, self.baseline

    @property
    def begun_arms(self) -> list[ArmResults]:
        """Arms with a primary endpoint that can be compared with the baseline."""
        return [arm for arm in self.arms if any(result.effect for result in arm.primary)]

    @property
    def is_complete(self) -> bool:
        """Whether every planned stage has finished or is lost."""
        return self.num_rows == self.num_planned_rows

    @property
    def num_awaited_seeds(self) -> int:
        """Number of seeds that the first arm or the baseline has not finished yet."""
        return self.num_planned_seeds - self.num_seeds - self.num_lost_seeds


def study_results(plan: Plan, ledger: Ledger) -> StudyResults:
    """Compare every arm of a study with the baseline, and count its finished, missing and diverged stages."""
    rows, stages = rows_by_run(ledger.rows), stage_names(plan)
    others = [arm.name for arm in plan.arms if arm.name != plan.baseline]
    complete = {key for key, row in rows.items() if key not in ledger.missing_runs and not missing_scores(plan, row)}
    diverged = {(row.arm, row.seed, row.stage) for row in ledger.diverged}
    # Fine-tunings start from the pretrained model, so they are lost together with it.
    lost = diverged | {(arm, seed, t) for arm, seed, stage in diverged if stage == stages[0] for t in stages}
    lost -= rows.keys()
    planned = [(arm.name, seed, stage) for arm in plan.arms for stage in stages for seed in plan.seeds]
    compared = [[(arm, seed, t) for arm in (others[0], plan.baseline) for t in stages] for seed in plan.seeds]
    lost_in_words = _describe_runs(key for key in planned if key in lost)
    return StudyResults(
        baseline=plan.baseline,
        stages=stages,
        split=plan.endpoints.split,
        num_rows=sum(key in complete for key in planned),
        num_planned_rows=sum(key not in lost for key in planned),
        num_seeds=sum(all(key in rows for key in keys) for keys in compared),
        num_planned_seeds=len(plan.seeds),
        num_lost_seeds=sum(any(key in lost for key in keys) for keys in compared),
        missing=_describe_runs(key for key in planned if key not in complete and key not in lost),
        lost=lost_in_words,
        arms=tuple(ArmResults(arm=arm, endpoints=_endpoints(plan, rows, arm)) for arm in others),
        near_chance=_near_chance(plan, rows, (others[0], plan.baseline)),
        costs=tuple(_cost(plan, own) for arm in plan.arms if (own := [r for r in ledger.rows if r.arm == arm.name])),
        machines=tuple(dict.fromkeys(row.machine for row in ledger.rows)),
        precisions=tuple(dict.fromkeys(row.precision for row in ledger.rows)),
        commits=tuple(dict.fromkeys(row.commit for row in ledger.rows)),
        notes=(*ledger.notes, *(f"diverged, {line}" for line in lost_in_words), *_without_ratio(plan, rows)),
    )


def rows_by_run(rows: Iterable[LedgerRow]) -> dict[tuple[str, int, str], LedgerRow]:
    """Return the rows by arm, seed and stage."""
    return {(row.arm, row.seed, row.stage): row for row in rows}


def split_rows(plan: Plan, ledger: Ledger) -> list[Row]:
    """Return the metrics of the first arm and the baseline on each test split of each stage.

    If there are several fine-tunings, the last row is the average over their domains. Values are means over common
    seeds. For losses, they are geometric means, so that their ratio is the change in the other tables.
    """
    rows = rows_by_run(ledger.rows)
    pair = (next(arm.name for arm in plan.arms if arm.name != plan.baseline), plan.baseline)
    found = {}
    for stage in stage_names(plan):
        runs = [[rows.get((arm, seed, stage)) for arm in pair] for seed in plan.seeds]
        both = [(first.metrics, second.metrics) for first, second in runs if first and second]
        for split in (name for name in (both[0][0] if both else ()) if name != "val"):
            sides = ([metrics[side][split] for metrics in both if split in metrics[side]] for side in (0, 1))
            found[f"{stage}/{split}"] = row(f"{stage}/{split}", *map(_mean_metrics, sides))
    domains = [found[name] for stage in stage_names(plan)[1:] if (name := f"{stage}/{plan.endpoints.split}") in found]
    averaged = [average_row(f"average of {len(domains)} domains", domains)] if len(domains) > 1 else []
    return [*found.values(), *averaged]


def _mean_metrics(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in measured[0] if all(name in metrics for metrics in measured)]
    return {
        name: float(np.exp(np.log([metrics[name] for metrics in measured]).mean()))
        if name in LOSSES and len(measured) > 1
        else float(np.mean([metrics[name] for metrics in measured]))
        for name in names
    }


def _endpoints(plan: Plan, rows: Rows, arm: str) -> tuple[EndpointResult, ...]:
    names, num_primary = plan.endpoints.all, len(plan.endpoints.primary)
    values = {name: [endpoint_values(rows, plan, name, side) for side in (arm, plan.baseline)] for name in names}
    seeds = {name: [seed for seed in sides[0] if seed in sides[1]] for name, sides in values.items()}
    logs = {name: [np.log([side[s] for s in seeds[name]]) for side in sides] for name, sides in values.items()}
    effects = {name: effect_of(seeds[name], ours - theirs) for name, (ours, theirs) in logs.items() if seeds[name]}
    # Primary endpoints that have enough seeds for a verdict. The others still count in Holm's correction.
    deciding = [
        name for name in plan.endpoints.primary if len(seeds[name]) > 1 and len(seeds[name]) >= min_seeds(num_primary)
    ]
    p_values = [effects[name].p_t if name in deciding else None for name in plan.endpoints.primary]
    adjusted = holm(np.array([math.nan if p is None else p for p in p_values]))
    found = []
    for number, name in enumerate(names):
        is_primary, effect = number < num_primary, effects.get(name)
        images = image_intervals(
            split_endpoint(name)[1],
            plan.endpoints.split,
            [
                ([rows[arm, s, stage] for s in seeds[name]], [rows[plan.baseline, s, stage] for s in seeds[name]])
                for stage in stages_of(plan, name)
            ],
        )
        found.append(
            EndpointResult(
                endpoint=name,
                is_primary=is_primary,
                arm_value=_geometric_mean(logs[name][0]),
                baseline_value=_geometric_mean(logs[name][1]),
                effect=effect,
                over_images=images.over_images,
                over_both=images.over_both,
                p_holm=finite_or_none(adjusted[number]) if is_primary else None,
                smallest_shown=_detectable_change(effect, num_primary) if effect and name in deciding else None,
            )
        )
    return tuple(found)


def _geometric_mean(logs: np.ndarray) -> float | None:
    return float(np.exp(logs.mean())) if len(logs) else None


def _detectable_change(effect: Effect, num_endpoints: int) -> float | None:
    if effect.deviation is None:
        return None
    deviations = smallest_detectable_effect(len(effect.seeds), num_endpoints)
    # Expressed as a decrease. The equivalent increase is a larger percentage.
    return float(-as_percent(-deviations * effect.deviation / 100))


def _near_chance(plan: Plan, rows: Rows, pair: Sequence[str]) -> tuple[NearChance, ...]:
    found = {}
    for stage, arm in ((stage, arm) for stage in stage_names(plan) for arm in pair):
        runs = [rows[key] for seed in plan.seeds if (key := (arm, seed, stage)) in rows]
        measured = [run.metrics.get(plan.endpoints.split, {}) for run in runs]
        losses = [loss for metrics in measured if 0 < (loss := metrics.get("contrastive_loss", 0.0)) < math.inf]
        size = int(max((metrics.get("contrastive_batch_size", 0) for metrics in measured), default=0))
        if losses and size > 1 and np.log(losses).mean() >= np.log(_NEAR_CHANCE * math.log(size)):
            found[stage] = NearChance(stage=stage, batch_size=size, chance=math.log(size))
    return tuple(found.values())


def _cost(plan: Plan, rows: Sequence[LedgerRow]) -> ArmCost:
    stages = {stage: found for stage in stage_names(plan) if (found := [row for row in rows if row.stage == stage])}
    return ArmCost(
        arm=rows[0].arm,
        parameters=rows[0].parameters,
        image_encoder_parameters=rows[0].image_encoder_parameters,
        flops_per_pair=rows[0].flops_per_pair,
        training_flops={stage: found[0].training_flops or 0 for stage, found in stages.items()},
        seconds={stage: median(row.seconds for row in found) for stage, found in stages.items()},
    )


def _describe_runs(runs: Iterable[tuple[str, int, str]]) -> tuple[str, ...]:
    """Return one line per arm and stage, such as `grr_coca, health, seeds: 2, 3`."""
    seeds: dict[str, list[str]] = {}
    for arm, seed, stage in runs:
        seeds.setdefault(f"{arm}, {stage}, seeds: ", []).append(str(seed))
    return tuple(name + ", ".join(found) for name, found in seeds.items())


def _without_ratio(plan: Plan, rows: Rows) -> list[str]:
    """Return notes on finished stages in which the value of an endpoint is missing or has no logarithm."""
    notes = []
    for endpoint, arm in ((endpoint, arm.name) for endpoint in plan.endpoints.all for arm in plan.arms):
        values = endpoint_values(rows, plan, endpoint, arm)
        done = [s for s in plan.seeds if all((arm, s, stage) in rows for stage in stages_of(plan, endpoint))]
        if missing := [str(seed) for seed in done if seed not in values]:
            notes.append(
                f"{arm}, {title(endpoint)}: not measured, NaN, infinite or not above zero with seeds "
                f"{', '.join(missing)}; these seeds are excluded from this endpoint"
            )
    return notes
