"""The results of a study: numbers alone, from its plan and its ledger."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from grr_coca.study.ledger import Ledger, LedgerRow
from grr_coca.study.plan.lacking import lacking_scores
from grr_coca.study.plan.plan import Plan, stage_names
from grr_coca.study.report.numbers.cost import ArmCost, arm_costs
from grr_coca.study.report.numbers.effect import Effect, effect_of
from grr_coca.study.report.numbers.factors import FactorResults, factor_results
from grr_coca.study.report.numbers.images import interval_over_images
from grr_coca.study.report.numbers.metrics import Endpoint, Rows, endpoint_values, rows_by_run, stages_of
from grr_coca.study.statistics.paired import as_percent, bootstrap_coverage, log_ratios
from grr_coca.study.statistics.power import smallest_shown_effect
from grr_coca.study.statistics.significance import holm

Run = tuple[str, int, str]
"""Arm, seed and stage."""


@dataclass(frozen=True, kw_only=True)
class EndpointResult:
    """An endpoint of one arm against the baseline, over the seeds that both have.

    `arm_value`, `baseline_value`: geometric means over seeds. `effect` None: no seed has both.
    `over_images`: ends of a 95 % interval in per cent over images of the test split, with the seeds that there are;
    None where no values for it are in the ledger.
    `p_holm`: of the sign-flip test, corrected for all primary endpoints of the plan; None for secondary ones.
    `smallest_shown`: the true change in per cent that this verdict would find in four studies of five with as many
    seeds and this deviation; None for secondary endpoints, and where so few seeds cannot find anything.
    """

    endpoint: str
    is_primary: bool
    arm_value: float | None
    baseline_value: float | None
    effect: Effect | None
    over_images: tuple[float, float] | None
    p_holm: float | None = None
    smallest_shown: float | None = None


@dataclass(frozen=True, kw_only=True)
class ArmResults:
    """All endpoints of one arm against the baseline, the primary ones first."""

    arm: str
    endpoints: tuple[EndpointResult, ...]


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """Everything that a study says in numbers; `results.json` is this.

    `num_rows`, `num_planned_rows`: stages that are done, and that the plan has without those that are lost.
    `num_seeds`: seeds with all stages of the first arm and of the baseline; `num_planned_seeds` of the plan. Effects
    tell their own seeds: an endpoint may lack some, and a factorial needs those that every corner has.
    `missing`: stages that lack, by arm and seed, in words. `lost`: those that diverged, or had nothing to start from,
    because their pretraining did. `num_lost_seeds`: seeds that the first arm or the baseline lost a stage of.
    `factorial`: effects over the seeds that have every corner; empty where the plan has no factorial.
    `bootstrap_coverage`: the share of studies with so many seeds in which the bootstrap's intervals hold the truth.
    `notes`: what was not counted, and why.
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
    factorial: tuple[FactorResults, ...]
    costs: tuple[ArmCost, ...]
    machines: tuple[str, ...]
    precisions: tuple[str, ...]
    commits: tuple[str, ...]
    bootstrap_coverage: float | None
    notes: tuple[str, ...]

    @property
    def begun_arms(self) -> tuple[ArmResults, ...]:
        """Arms of which a primary endpoint has been measured, with a seed that the baseline has too."""
        return tuple(arm for arm in self.arms if any(r.effect for r in arm.endpoints if r.is_primary))

    @property
    def is_complete(self) -> bool:
        """Whether every planned stage has ended."""
        return self.num_rows == self.num_planned_rows

    @property
    def num_awaited_seeds(self) -> int:
        """Seeds that the first arm or the baseline has not ended yet."""
        return self.num_planned_seeds - self.num_seeds - self.num_lost_seeds


def study_results(plan: Plan, ledger: Ledger) -> StudyResults:
    """Compare every arm with the baseline, and work out the factorial if there is one."""
    rows = rows_by_run(ledger.rows)
    others = [arm.name for arm in plan.arms if arm.name != plan.baseline]
    stages = stage_names(plan)
    whole = {key: row for key, row in rows.items() if not lacking_scores(plan, row)}
    lost = _lost(ledger, rows, stages)
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
        factorial=factor_results(rows, plan),
        costs=arm_costs(plan, ledger.rows),
        machines=_distinct(row.machine for row in ledger.rows),
        precisions=_distinct(row.precision for row in ledger.rows),
        commits=_distinct(row.commit for row in ledger.rows),
        bootstrap_coverage=bootstrap_coverage(len(complete)) if len(complete) > 1 else None,
        notes=(*ledger.notes, *(f"diverged, {line}" for line in lost_in_words), *_without_ratio(rows, plan)),
    )


def _endpoints(rows: Rows, plan: Plan, arm: str) -> tuple[EndpointResult, ...]:
    primary = [_endpoint(rows, plan, arm, name, is_primary=True) for name in plan.endpoints.primary]
    found = [result.effect.p_sign_flip if result.effect else np.nan for result in primary]
    adjusted = holm(np.array(found))
    corrected = [
        replace(result, p_holm=_number(p), smallest_shown=_smallest_shown(result.effect, len(primary)))
        for result, p in zip(primary, adjusted, strict=True)
    ]
    secondary = [_endpoint(rows, plan, arm, name, is_primary=False) for name in plan.endpoints.secondary]
    return (*corrected, *secondary)


def _endpoint(rows: Rows, plan: Plan, arm: str, name: str, *, is_primary: bool) -> EndpointResult:
    values, baseline = (endpoint_values(rows, plan, Endpoint(name), side) for side in (arm, plan.baseline))
    seeds = [seed for seed in values if seed in baseline]
    sides = [np.array([side[seed] for seed in seeds]) for side in (values, baseline)]
    ratios = log_ratios(sides[0], sides[1])
    return EndpointResult(
        endpoint=name,
        is_primary=is_primary,
        arm_value=_geometric_mean(sides[0]),
        baseline_value=_geometric_mean(sides[1]),
        effect=effect_of(dict(zip(seeds, ratios.tolist(), strict=True))),
        over_images=interval_over_images(rows, plan, Endpoint(name), arm, seeds),
    )


def _smallest_shown(effect: Effect | None, num_endpoints: int) -> float | None:
    if effect is None or effect.deviation is None:
        return None
    deviations = smallest_shown_effect(effect.num_seeds, num_endpoints)
    if not np.isfinite(deviations):
        return None
    # As a decrease, which is the smaller of the two percentages.
    return float(-as_percent(-deviations * effect.deviation / 100))


def _lost(ledger: Ledger, rows: Rows, stages: Sequence[str]) -> set[Run]:
    """Runs that diverged, and what would have started from these."""
    lost = {(row.arm, row.seed, row.stage) for row in ledger.diverged}
    lost |= {(arm, seed, t) for arm, seed, stage in lost if stage == stages[0] for t in stages}
    return lost - rows.keys()


def _by_arm(plan: Plan, is_told: Callable[[Run], bool]) -> tuple[str, ...]:
    """Some of the planned stages in words, a line for each arm and choice of stages."""
    lines = []
    for arm in plan.arms:
        told_stages = {s: [t for t in stage_names(plan) if is_told((arm.name, s, t))] for s in plan.seeds}
        groups: dict[str, list[str]] = {}
        for seed, stages in told_stages.items():
            if stages:
                told = "all stages" if len(stages) == len(stage_names(plan)) else ", ".join(stages)
                groups.setdefault(told, []).append(str(seed))
        lines += [f"{arm.name}: {told} of {_seeds_in_words(seeds, len(plan.seeds))}" for told, seeds in groups.items()]
    return tuple(lines)


def _seeds_in_words(seeds: list[str], num_planned: int) -> str:
    if len(seeds) == num_planned > 1:
        return f"all {num_planned} seeds"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _without_ratio(rows: Rows, plan: Plan) -> list[str]:
    """Values that are there, or should be, and have no logarithm."""
    notes = []
    for name in plan.endpoints.all:
        endpoint = Endpoint(name)
        for arm in plan.arms:
            values = endpoint_values(rows, plan, endpoint, arm.name)
            phase = stages_of(plan, endpoint)
            done = [seed for seed in plan.seeds if all((arm.name, seed, stage) in rows for stage in phase)]
            unmeasured = [s for s in done if any(_is_unmeasured(rows[arm.name, s, t], plan, endpoint) for t in phase)]
            zero = [seed for seed in done if seed not in values and seed not in unmeasured]
            for why, seeds in (("not measured", unmeasured), ("no finite value above zero", zero)):
                if seeds:
                    notes.append(
                        f"{arm.name}, {endpoint.full_title}: {why} with seeds {', '.join(map(str, seeds))}, so no "
                        "ratio; these seeds are left out of this endpoint"
                    )
    return notes


def _is_unmeasured(row: LedgerRow, plan: Plan, endpoint: Endpoint) -> bool:
    return endpoint.metric not in row.metrics.get(plan.endpoints.split, {})


def _geometric_mean(values: np.ndarray) -> float | None:
    return float(np.exp(np.log(values).mean())) if len(values) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _distinct(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
