"""The factorial of a study: what each part does, and which parts act together."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from grr_coca.study.plan.plan import Plan
from grr_coca.study.report.numbers.corners import factorial_corners
from grr_coca.study.report.numbers.effect import Effect, effect_of
from grr_coca.study.report.numbers.metrics import Endpoint, Rows, endpoint_values
from grr_coca.study.statistics.factorial import Cell, factorial_effects
from grr_coca.study.statistics.significance import holm

Factors = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FactorResults:
    """A main effect, or the interaction of several factors, on each primary endpoint by its name.

    `p_holm`: of the t test, corrected for all effects of the factorial on one endpoint; empty for a single seed.
    """

    factors: Factors
    effects: dict[str, Effect]
    p_holm: dict[str, float]


def factor_results(rows: Rows, plan: Plan) -> tuple[FactorResults, ...]:
    """All effects, main effects first, over the seeds that have every corner; empty if there are none."""
    effects = {name: _effects(logs) for name in plan.endpoints.primary if (logs := corner_logs(rows, plan, name))}
    p_values = {name: _corrected(found) for name, found in effects.items()}
    return tuple(
        FactorResults(
            factors=factors,
            effects={name: found[factors] for name, found in effects.items()},
            p_holm={name: found[factors] for name, found in p_values.items() if factors in found},
        )
        for factors in (next(iter(effects.values())) if effects else ())
    )


def corner_logs(rows: Rows, plan: Plan, endpoint: str) -> dict[Cell, dict[int, float]]:
    """Log of an endpoint in each corner, by the seeds that all corners have; empty without such a seed or factorial."""
    corners = factorial_corners(plan)
    values = {cell: endpoint_values(rows, plan, Endpoint(endpoint), arm) for cell, arm in corners.items()}
    seeds = [seed for seed in plan.seeds if all(seed in found for found in values.values())]
    if not corners or not seeds:
        return {}
    return {cell: {seed: float(np.log(found[seed])) for seed in seeds} for cell, found in values.items()}


def _effects(logs: Mapping[Cell, Mapping[int, float]]) -> dict[Factors, Effect]:
    seeds = list(next(iter(logs.values())))
    by_factors = factorial_effects({cell: np.array(list(found.values())) for cell, found in logs.items()})
    effects = {
        factors: effect_of(dict(zip(seeds, values.tolist(), strict=True))) for factors, values in by_factors.items()
    }
    return {factors: effect for factors, effect in effects.items() if effect is not None}


def _corrected(effects: Mapping[Factors, Effect]) -> dict[Factors, float]:
    p_values = [effect.p_t for effect in effects.values()]
    known = [p for p in p_values if p is not None]
    return dict(zip(effects, holm(np.array(known)).tolist(), strict=True)) if len(known) == len(p_values) else {}
