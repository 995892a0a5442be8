"""Compare arms whose grids were run with every seed, each arm at its own best point.

The best point is chosen by the CoCa loss on `val`, and the choice is repeated in each draw of the bootstrap: an
interval at points that were chosen once would be too narrow, since other seeds might have chosen others.

Shapes: P points, S seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from grr_coca_study.ledger import Ledger
from grr_coca_study.plan import Plan, Settings, arm_named, points_of, split_endpoint, stage_names
from grr_coca_study.report.endpoints import Interval, image_intervals, value_of
from grr_coca_study.rows import LedgerRow
from grr_coca_study.statistics import RESAMPLES, Effect, effect_of, percentiles


@dataclass(frozen=True, kw_only=True)
class GridCurve:
    """Losses of an arm at the points of its grid, in the order of the plan, by seed.

    Attributes:
        best: The point with the lowest mean logarithm of `val`.
        val: The CoCa loss on the validation split after pretraining, by which points are chosen.
        test: The endpoint. Both are None where a run diverged, or has no value of the endpoint.
    """

    arm: str
    points: tuple[Settings, ...]
    best: Settings
    val: tuple[tuple[float | None, ...], ...]
    test: tuple[tuple[float | None, ...], ...]

    def log_of(self, split: Literal["val", "test"]) -> Float[np.ndarray, "P S"]:
        """Return the logarithms of a table; NaN for None."""
        return np.log(np.array(getattr(self, split), dtype=float))


@dataclass(frozen=True)
class BestAgainstBest:
    """An arm over the baseline, each at its best point.

    Attributes:
        effect: Over seeds, with the points as they were chosen.
        low, high: Ends in per cent of the percentile bootstrap's interval over seeds, choosing points again in each
            draw.
        kept: The share of draws that chose the same two points. All three are None for a single seed.
    """

    effect: Effect
    low: float | None = None
    high: float | None = None
    kept: float | None = None

    @property
    def interval(self) -> Interval | None:
        """Both ends."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class AtPoint:
    """An arm over the baseline, both at the same point; `over_both`: see `GridResults`."""

    point: Settings
    effect: Effect
    over_both: Interval | None


@dataclass(frozen=True, kw_only=True)
class GridResults:
    """An arm and the baseline over the seeds that have every point of both.

    Attributes:
        split: The test split of the endpoint.
        best_over_both: 95 % interval in per cent over seeds and images at once, with the points as they were chosen;
            None for a single seed, or if the rows lack the values.
        at_points: At each point that both have; without points at which a run diverged.
    """

    endpoint: str
    split: str
    seeds: tuple[int, ...]
    model: GridCurve
    baseline: GridCurve
    best: BestAgainstBest
    best_over_both: Interval | None
    at_points: tuple[AtPoint, ...]


def grid_results(plan: Plan, ledger: Ledger) -> tuple[GridResults, ...]:
    """Return every arm of the plan against its baseline, on the first primary endpoint of pretraining.

    Returns:
        Nothing if neither has a grid, tuning has separate seeds, or no seed has all points. An arm that diverged at
        every point is excluded.
    """
    first = [name for name in plan.endpoints.primary if split_endpoint(name)[0] == "pretraining"][:1]
    found = [_compared(plan, ledger, endpoint, arm.name) for endpoint in first for arm in plan.arms]
    return tuple(_results(plan, first[0], compared) for compared in found if compared is not None)


def depends_on_choice(plan: Plan, endpoint: str, arm: str) -> bool:
    """Return whether an endpoint of an arm or of the baseline depends on settings that were chosen with the plan's
    seeds.
    """
    stages = stage_names(plan)[: 1 if split_endpoint(endpoint)[0] == "pretraining" else None]
    pair = [arm_named(plan, name) for name in (arm, plan.baseline)]
    return plan.tuning is None and any(len(points_of(plan, each, stage)) > 1 for each in pair for stage in stages)


def interval_with_choice(plan: Plan, ledger: Ledger, endpoint: str, arm: str) -> Interval | None:
    """Return 95 % interval over seeds, each draw of which chooses the points.

    None for a single seed, and for endpoints of fine-tuning, which starts only from the best points.
    """
    found = _compared(plan, ledger, endpoint, arm) if split_endpoint(endpoint)[0] == "pretraining" else None
    if found is None:
        return None
    return best_against_best(found.model, found.baseline, found.seeds).interval


def number_of(point: Settings) -> float | None:
    """Return the value of a point with one number above zero; None of others."""
    (value, *others) = point.values() or (None,)
    if others or not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if value > 0 else None


class _Compared(NamedTuple):
    """An arm and the baseline over some seeds. `rows`: of both, by seed, for each point."""

    seeds: tuple[int, ...]
    rows: list[list[dict[int, LedgerRow]]]
    model: GridCurve
    baseline: GridCurve


def _compared(plan: Plan, ledger: Ledger, endpoint: str, arm: str) -> _Compared | None:
    rows = [_rows_by_point(plan, ledger, name) for name in (arm, plan.baseline)]
    seeds = tuple(seed for seed in plan.seeds if all(seed in of_point for side in rows for of_point in side))
    if arm == plan.baseline or plan.tuning is not None or max(map(len, rows)) < 2 or not seeds:
        return None
    curves = [_curve(plan, endpoint, [[of_point[seed] for seed in seeds] for of_point in side]) for side in rows]
    if any(None in curve.test[curve.points.index(curve.best)] for curve in curves):
        return None
    return _Compared(seeds, rows, *curves)


def _rows_by_point(plan: Plan, ledger: Ledger, arm: str) -> list[dict[int, LedgerRow]]:
    """Return the rows of an arm's pretraining by seed, for each point of its grid in order."""
    stage = stage_names(plan)[0]
    num_points = len(points_of(plan, arm_named(plan, arm), stage))
    rows = ledger.tried if num_points > 1 else (*ledger.rows, *ledger.diverged)
    found: dict[str, dict[int, LedgerRow]] = {}
    for row in rows:
        if (row.arm, row.stage) == (arm, stage):
            found.setdefault(row.recipe_digest, {})[row.seed] = row
    return [*found.values(), *({} for _ in range(num_points - len(found)))]


def _curve(plan: Plan, endpoint: str, rows: Sequence[Sequence[LedgerRow]]) -> GridCurve:
    """Return the curve of an arm from rows by point and seed."""
    test = [[value_of(row, plan, endpoint) for row in of_point] for of_point in rows]
    val = [
        [
            None if value is None else row.metrics.get("val", {}).get("coca_loss")
            for row, value in zip(*both, strict=True)
        ]
        for both in zip(rows, test, strict=True)
    ]
    means = [np.log(np.array([math.inf if loss is None else loss for loss in losses])).mean() for losses in val]
    points = tuple(of_point[0].settings for of_point in rows)
    return GridCurve(
        arm=rows[0][0].arm,
        points=points,
        best=points[means.index(min(means))],
        val=tuple(map(tuple, val)),
        test=tuple(map(tuple, test)),
    )


def _results(plan: Plan, endpoint: str, compared: _Compared) -> GridResults:
    seeds, rows, ours, theirs = compared
    places = {i: theirs.points.index(p) for i, p in enumerate(ours.points) if p and p in theirs.points}
    ratios = {i: ours.log_of("test")[i] - theirs.log_of("test")[j] for i, j in places.items()}
    ratios = {i: found for i, found in ratios.items() if np.isfinite(found).all()}

    def over_both(i: int, j: int) -> Interval | None:
        both = [rows[0][i][seed] for seed in seeds], [rows[1][j][seed] for seed in seeds]
        return image_intervals(split_endpoint(endpoint)[1], plan.endpoints.split, [both]).over_both

    return GridResults(
        endpoint=endpoint,
        split=plan.endpoints.split,
        seeds=seeds,
        model=ours,
        baseline=theirs,
        best=best_against_best(ours, theirs, seeds),
        best_over_both=over_both(ours.points.index(ours.best), theirs.points.index(theirs.best)),
        at_points=tuple(
            AtPoint(ours.points[i], effect_of(seeds, found), over_both(i, places[i])) for i, found in ratios.items()
        ),
    )


def best_against_best(model: GridCurve, baseline: GridCurve, seeds: Sequence[int]) -> BestAgainstBest:
    """Compare an arm at its best point with the baseline at its best point. The bootstrap resamples seeds, in pairs."""
    at_best = [curve.log_of("test")[curve.points.index(curve.best)] for curve in (model, baseline)]
    effect = effect_of(seeds, at_best[0] - at_best[1])
    if len(seeds) == 1:
        return BestAgainstBest(effect)
    draws = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
    (ours, has_ours), (theirs, has_theirs) = (_at_best_of_draws(curve, draws) for curve in (model, baseline))
    return BestAgainstBest(effect, *percentiles(ours - theirs), float(np.mean(has_ours & has_theirs)))


def _at_best_of_draws(
    curve: GridCurve, draws: np.ndarray
) -> tuple[Float[np.ndarray, " draws"], Bool[np.ndarray, " draws"]]:
    """Return the mean log of the endpoint at each draw's best point, and whether that is the best point of all
    seeds.
    """
    val, test = curve.log_of("val")[:, draws].mean(axis=-1), curve.log_of("test")[:, draws].mean(axis=-1)
    chosen = np.where(np.isnan(val), math.inf, val).argmin(axis=0)
    return test[chosen, np.arange(len(chosen))], chosen == curve.points.index(curve.best)
