"""Compare arms whose grids were run with every seed, each arm at its own best point.

The best point is chosen by the CoCa loss on `val`, and the choice is repeated in each draw of the bootstrap: an
interval at points that were chosen once would be too narrow, since other seeds might have chosen others.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.study.drawing import COLOURS, FAINT, new_figure, style_axes, svg_text
from grr_coca.study.ledger import Ledger
from grr_coca.study.plan import Arm, Plan, Settings, arm_named, points_of, stage_names
from grr_coca.study.report.numbers import (
    Effect,
    Endpoint,
    EndpointResult,
    StudyResults,
    effect_of,
    image_intervals,
)
from grr_coca.study.report.tables import Table, effect_cell
from grr_coca.study.report.verdict import arm_titles, ends_in_signs
from grr_coca.study.rows import LedgerRow
from grr_coca.study.statistics import LEVEL, RESAMPLES, as_percent

CHOSEN_ON_VAL = "pretraining/coca_loss"


@dataclass(frozen=True, kw_only=True)
class GridCurve:
    """Losses of an arm at the points of its grid, in the order of the plan.

    Shapes: P points, S seeds. `rows`: by seed, for each point. `val`: the CoCa loss on the validation split after
    pretraining, by which points are chosen; infinite where a run diverged, or has no value of the endpoint. `test`: the
    endpoint; NaN there.
    """

    arm: str
    title: str
    points: tuple[Settings, ...]
    rows: tuple[Mapping[int, LedgerRow], ...]
    val: Float[np.ndarray, "P S"]
    test: Float[np.ndarray, "P S"]

    @property
    def losses(self) -> dict[str, Float[np.ndarray, "P S"]]:
        """The two tables by name."""
        return {"val": self.val, "test": self.test}

    @property
    def best(self) -> int:
        """Index of the best point: that with the lowest mean logarithm of the loss on `val`; of equals the first."""
        return int(np.log(self.val).mean(axis=1).argmin())

    @property
    def best_title(self) -> str:
        """The arm and its best point, such as `GRR-CoCa at 0.006`."""
        return f"{self.title} at {_short(self.points[self.best])}" if self.points[self.best] else self.title

    @property
    def is_best_at_edge(self) -> bool:
        """True if a value of the best point is the lowest or highest of three or more. A better one may lie beyond."""
        for key, value in self.points[self.best].items():
            tried = {found for point in self.points if isinstance(found := point[key], int | float)}
            if len(tried) > 2 and value in (min(tried), max(tried)):
                return True
        return False


@dataclass(frozen=True)
class BestAgainstBest:
    """An arm over the baseline, each at its best point.

    `effect`: over seeds, with the points as they were chosen. `low`, `high`: ends in per cent of the percentile
    bootstrap's interval over seeds, with the points chosen anew in each draw; `kept`: the share of draws that chose the
    same two points. All three are None for a single seed.
    """

    effect: Effect
    low: float | None
    high: float | None
    kept: float | None


@dataclass(frozen=True)
class AtPoint:
    """An arm over the baseline, both at the same point; `over_both`: see `GridResults`."""

    point: Settings
    effect: Effect
    over_both: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class GridResults:
    """An arm and the baseline over the seeds that have every point of both.

    - `split`: the test split of the endpoint
    - `best_over_both`: 95 % interval in per cent over seeds and images at once, with the points as they were chosen;
      None for a single seed, or if the rows lack the values
    - `at_points`: at each point that both have; without points at which a run diverged
    - `interaction`: by how much this change grows when the grid's one number is doubled, from a line through the seed's
      changes by the number's logarithm; None with other grids, or where fewer than two points can be compared
    """

    endpoint: Endpoint
    split: str
    seeds: tuple[int, ...]
    model: GridCurve
    baseline: GridCurve
    best: BestAgainstBest
    best_over_both: tuple[float, float] | None
    at_points: tuple[AtPoint, ...]
    interaction: Effect | None


def grid_results(plan: Plan, ledger: Ledger) -> list[GridResults]:
    """Every arm of the plan against its baseline, on the first primary endpoint of pretraining.

    Returns:
        Nothing if neither has a grid, tuning has seeds of its own, or no seed has all points. An arm that diverged at
        every point is left out.
    """
    endpoint = next((each for each in map(Endpoint, plan.endpoints.primary) if each.phase == "pretraining"), None)
    found = [_compared(plan, ledger, endpoint, arm) for arm in plan.arms if endpoint is not None]
    return [results for results in found if results is not None]


def with_choice_drawn(plan: Plan, ledger: Ledger, results: StudyResults) -> StudyResults:
    """The results with the intervals in which each draw of seeds chooses the settings.

    Endpoints without such an interval lose their corrected p, so that they get no verdict: those of fine-tuning, which
    starts from the best points alone.
    """

    first = stage_names(plan)[0]

    def drawn(result: EndpointResult, arm: str) -> EndpointResult:
        endpoint, pair = Endpoint(result.endpoint), (arm_named(plan, arm), arm_named(plan, plan.baseline))
        stages = stage_names(plan) if endpoint.phase == "finetuning" else (first,)
        if not any(len(points_of(plan, each, stage)) > 1 for each in pair for stage in stages):
            return result
        found = _compared(plan, ledger, endpoint, pair[0]) if result.is_primary and stages == (first,) else None
        if found is None or found.best.low is None or found.best.high is None:
            return replace(result, p_holm=None)
        return replace(result, with_choice=(found.best.low, found.best.high))

    if plan.tuning is not None:
        return results
    arms = [replace(each, endpoints=tuple(drawn(r, each.arm) for r in each.endpoints)) for each in results.arms]
    return replace(results, arms=tuple(arms))


def _compared(plan: Plan, ledger: Ledger, endpoint: Endpoint, arm: Arm) -> GridResults | None:
    baseline = arm_named(plan, plan.baseline)
    points = [_rows_by_point(plan, ledger, each) for each in (arm, baseline)]
    seeds = tuple(seed for seed in plan.seeds if all(seed in rows for side in points for rows in side))
    if arm == baseline or plan.tuning is not None or max(map(len, points)) < 2 or not seeds:
        return None
    ours, theirs = (_curve(plan, endpoint, *side, seeds) for side in zip((arm, baseline), points, strict=True))
    if not all(np.isfinite(curve.test[curve.best]).all() for curve in (ours, theirs)):
        return None
    ratios = _log_ratios(ours, theirs)
    return GridResults(
        endpoint=endpoint,
        split=plan.endpoints.split,
        seeds=seeds,
        model=ours,
        baseline=theirs,
        best=best_against_best(ours, theirs, seeds),
        best_over_both=_over_both(plan, endpoint, ours, theirs, (ours.best, theirs.best), seeds),
        at_points=tuple(
            AtPoint(
                ours.points[pair[0]], _effect(of_point, seeds), _over_both(plan, endpoint, ours, theirs, pair, seeds)
            )
            for pair, of_point in ratios.items()
        ),
        interaction=_interaction(ours, ratios, seeds),
    )


def best_against_best(model: GridCurve, baseline: GridCurve, seeds: Sequence[int]) -> BestAgainstBest:
    """Compare an arm at its best point with the baseline at its best point. The bootstrap resamples seeds, in pairs.

    Args:
        model: with losses of the seeds.
        baseline: the same.
        seeds: their numbers.
    """
    ratios = np.log(model.test[model.best]) - np.log(baseline.test[baseline.best])
    effect = _effect(ratios, seeds)
    if len(seeds) == 1:
        return BestAgainstBest(effect, None, None, None)
    draws = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
    (ours, has_ours), (theirs, has_theirs) = (_at_best_of_draws(curve, draws) for curve in (model, baseline))
    low, high = np.quantile(ours - theirs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    kept = float(np.mean(has_ours & has_theirs))
    return BestAgainstBest(effect, float(as_percent(low)), float(as_percent(high)), kept)


def grid_as_plain(results: GridResults) -> dict[str, object]:
    """The results with lists for arrays, for JSON. A loss of a run that diverged is null."""

    def curve(found: GridCurve) -> dict[str, object]:
        losses = {
            split: [[loss if math.isfinite(loss) else None for loss in row] for row in table.tolist()]
            for split, table in found.losses.items()
        }
        return {"arm": found.arm, "points": list(found.points), "best": found.points[found.best], **losses}

    return {
        "endpoint": results.endpoint.name,
        "split": results.split,
        "seeds": list(results.seeds),
        "model": curve(results.model),
        "baseline": curve(results.baseline),
        "best": to_dict(results.best),
        "best_over_both": results.best_over_both,
        "at_points": [to_dict(found) for found in results.at_points],
        "interaction": None if results.interaction is None else to_dict(results.interaction),
    }


def grid_tables(results: GridResults) -> list[Table]:
    """The answer, and the losses at each point."""
    model, baseline = results.model, results.baseline
    count = f"{len(results.seeds)} seed{'' if len(results.seeds) == 1 else 's'}"
    best, effect = results.best, results.best.effect
    with_choice = ends_in_signs(None if best.low is None or best.high is None else (best.low, best.high))
    at_best = f"best against best: {model.best_title} and {baseline.best_title}"
    lines = [
        (at_best, effect_cell(effect), ends_in_signs(results.best_over_both), with_choice),
        *(
            (f"both at {_short(at.point)}", effect_cell(at.effect), ends_in_signs(at.over_both), "–")
            for at in results.at_points
        ),
    ]
    if results.interaction is not None:
        lines.append(("more for each doubling", effect_cell(results.interaction), "–", "–"))
    note = (
        f"{model.title} over {baseline.title} in {results.endpoint.title} on the {results.split} split, in %, {count}. "
        "The best point has the lowest CoCa loss on val. First interval: Student's t over seeds, with the points as "
        "chosen. Over both: a bootstrap of seeds and images at once, with the points as chosen. With the choice drawn: "
        "a bootstrap of the seeds in which each draw chooses its points"
    )
    if best.kept is not None:
        note += f"; {100 * best.kept:.0f} % of the draws chose these. Over few seeds it is too narrow"
    note += "."
    if edges := [curve.title for curve in (model, baseline) if curve.is_best_at_edge]:
        note += f" The best point of {' and of '.join(edges)} is at the edge of the grid: a better one may lie beyond."
    answer = Table(
        "Best against best", ("settings", "change, %", "over both", "with the choice drawn"), tuple(lines), note
    )
    heads = ("settings", *(f"{c.title}, {split}" for c in (baseline, model) for split in ("val", results.split)))
    why_none = "diverged" if results.endpoint.lower_is_better else "diverged or 0"
    losses = tuple(
        (_short(point), *(cell for curve in (baseline, model) for cell in _loss_cells(curve, point, why_none)))
        for point in _all_points(results)
    )
    told = "Geometric means over the seeds; star: the best on val."
    if results.endpoint.name != CHOSEN_ON_VAL:
        told += f" On val: {Endpoint(CHOSEN_ON_VAL).full_title}; on {results.split}: {results.endpoint.full_title}."
    return [answer, Table("Losses by settings", heads, losses, told)]


def grid_figure(results: GridResults) -> str:
    """Draw the losses by point of the grid on both splits, and the change against the baseline.

    A curve for each arm has the range of its seeds, and its best point is ringed. The changes are those at each point
    and that of best against best, with intervals. A grid of one number has a logarithmic axis.
    """
    figure = new_figure(3.3)
    val, test, change = figure.subplots(1, 3)
    titles = {"val": "CoCa loss on val", "test": f"{results.endpoint.title} on {results.split}"}
    points = _all_points(results)
    values = [_number(point) for point in points]
    is_number = all(value is not None and value > 0 for value in values)
    places = [float(value or 0) if is_number else float(place) for place, value in enumerate(values)]
    for axes, split in ((val, "val"), (test, "test")):
        for curve, colour, marker in zip((results.model, results.baseline), COLOURS, ("o", "s"), strict=True):
            if curve.points == ({},):  # it has no grid
                level = np.exp(np.log(curve.losses[split]).mean())
                axes.axhline(level, color=colour, linewidth=1.4, label=curve.title)
            else:
                own = [places[points.index(point)] for point in curve.points]
                _draw_curve(axes, curve, curve.losses[split], np.array(own), colour, marker)
        style_axes(axes, titles[split])
        axes.set_xlabel(f"{', '.join(points[0])}; ringed: best on val", fontsize=8)
        if is_number:
            axes.set_xscale("log")
        axes.set_xticks(places, [_short(point) for point in points], fontsize=7)
        axes.minorticks_off()
    _draw_changes(change, results)
    handles, labels = val.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    return svg_text(figure)


def _rows_by_point(plan: Plan, ledger: Ledger, arm: Arm) -> list[dict[int, LedgerRow]]:
    """The rows of an arm's pretraining by seed, for each point of its grid in order."""
    stage = stage_names(plan)[0]
    num_points = len(points_of(plan, arm, stage))
    rows = ledger.tried if num_points > 1 else (*ledger.rows, *ledger.diverged)
    found: dict[str, dict[int, LedgerRow]] = {}
    for row in rows:
        if (row.arm, row.stage) == (arm.name, stage):
            found.setdefault(row.recipe_digest, {})[row.seed] = row
    return [*found.values(), *({} for _ in range(num_points - len(found)))]


def _curve(
    plan: Plan, endpoint: Endpoint, arm: Arm, rows: Sequence[Mapping[int, LedgerRow]], seeds: Sequence[int]
) -> GridCurve:
    def test(row: LedgerRow) -> float:
        value = row.metrics.get(plan.endpoints.split, {}).get(endpoint.metric, 0.0)
        return value if 0 < value < math.inf else math.nan

    def val(row: LedgerRow) -> float:
        chosen_by = Endpoint(CHOSEN_ON_VAL).metric
        return row.metrics.get("val", {}).get(chosen_by, math.inf) if math.isfinite(test(row)) else math.inf

    return GridCurve(
        arm=arm.name,
        title=arm_titles(plan)[arm.name],
        points=tuple(next(iter(of_point.values())).settings for of_point in rows),
        rows=tuple(rows),
        val=np.array([[val(of_point[seed]) for seed in seeds] for of_point in rows]),
        test=np.array([[test(of_point[seed]) for seed in seeds] for of_point in rows]),
    )


def _effect(log_ratios: np.ndarray, seeds: Sequence[int]) -> Effect:
    effect = effect_of(dict(zip(seeds, log_ratios.tolist(), strict=True)))
    assert effect is not None, "there is a seed"
    return effect


def _over_both(
    plan: Plan, endpoint: Endpoint, model: GridCurve, baseline: GridCurve, points: tuple[int, int], seeds: Sequence[int]
) -> tuple[float, float] | None:
    """Interval over seeds and images of an arm at a point over the baseline at a point."""
    stage = stage_names(plan)[0]
    rows = {
        (curve.arm, seed, stage): curve.rows[point][seed]
        for curve, point in zip((model, baseline), points, strict=True)
        for seed in seeds
    }
    found = image_intervals(rows, plan, endpoint, model.arm, seeds)
    return found.over_both if found else None


def _at_best_of_draws(
    curve: GridCurve, draws: np.ndarray
) -> tuple[Float[np.ndarray, " draws"], Bool[np.ndarray, " draws"]]:
    """The mean log of the endpoint at each draw's best point, and whether that is the best point of all seeds."""
    val, test = (np.log(losses)[:, draws].mean(axis=-1) for losses in (curve.val, curve.test))
    chosen = val.argmin(axis=0)
    return test[chosen, np.arange(len(chosen))], chosen == curve.best


def _log_ratios(model: GridCurve, baseline: GridCurve) -> dict[tuple[int, int], Float[np.ndarray, " S"]]:
    """Log of model over baseline for each seed, by the indices of a point that both have."""
    shared = [(i, baseline.points.index(p)) for i, p in enumerate(model.points) if p and p in baseline.points]
    ratios = {(i, j): np.log(model.test[i]) - np.log(baseline.test[j]) for i, j in shared}
    return {pair: found for pair, found in ratios.items() if np.isfinite(found).all()}


def _interaction(
    model: GridCurve, log_ratios: Mapping[tuple[int, int], np.ndarray], seeds: Sequence[int]
) -> Effect | None:
    numbers = [_number(model.points[index]) for index, _ in log_ratios]
    if len(numbers) < 2 or any(number is None or number <= 0 for number in numbers):
        return None
    doublings = np.log2([number for number in numbers if number is not None])
    slopes = np.polyfit(doublings, np.array(list(log_ratios.values())), 1)[0]
    return _effect(slopes, seeds)


def _number(point: Settings) -> float | None:
    """The value of a point with one number; None of others."""
    (value, *others) = point.values() or (None,)
    return float(value) if not others and isinstance(value, int | float) and not isinstance(value, bool) else None


def _short(point: Settings) -> str:
    """A point in a table: its one number alone, or each key with its value."""
    number = _number(point)
    if number is not None:
        return f"{number:g}"
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point.items()) or "–"


def _all_points(results: GridResults) -> list[Settings]:
    """The points of both, a single number in ascending order."""
    found: list[Settings] = []
    for point in (*results.model.points, *results.baseline.points):
        if point and point not in found:
            found.append(point)
    return sorted(found, key=lambda point: _number(point) or 0.0) if all(map(_number, found)) else found


def _loss_cells(curve: GridCurve, point: Settings, why_none: str) -> tuple[str, str]:
    if point not in curve.points:
        return "–", "–"
    index = curve.points.index(point)
    val, test = (float(np.exp(np.log(losses[index]).mean())) for losses in (curve.val, curve.test))
    star = "*" if index == curve.best else ""
    return (f"{val:.4f}{star}", f"{test:.4f}") if math.isfinite(val) else (why_none, "–")


def _draw_curve(axes: Axes, curve: GridCurve, losses: np.ndarray, places: np.ndarray, colour: str, marker: str) -> None:
    sound = np.isfinite(losses).all(axis=1)
    shown = losses[sound]
    mean = np.exp(np.log(shown).mean(axis=1))
    axes.fill_between(places[sound], shown.min(axis=1), shown.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axes.plot(places[sound], mean, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=curve.title)
    at_best = np.exp(np.log(losses[curve.best]).mean())
    axes.plot([places[curve.best]], [at_best], "o", markersize=9, markerfacecolor="none", markeredgecolor=colour)


def _draw_changes(axes: Axes, results: GridResults) -> None:
    places = [float(place) for place in range(len(results.at_points))]
    for place, at in zip(places, results.at_points, strict=True):
        axes.plot([place] * at.effect.num_seeds, at.effect.changes, ".", color=FAINT, markersize=4)
        _draw_interval(axes, place, at.effect.change, at.effect.low, at.effect.high, "o")
    best, place = results.best, len(places) + 0.5
    axes.plot([place] * best.effect.num_seeds, best.effect.changes, ".", color=FAINT, markersize=4)
    _draw_interval(axes, place, best.effect.change, best.low, best.high, "D")
    style_axes(axes, textwrap.fill(f"{results.model.title} over {results.baseline.title}, % on {results.split}", 39))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks([*places, place], [*(_short(at.point) for at in results.at_points), "best"], fontsize=7)
    axes.set_xlabel("both at these settings; best: each at its own", fontsize=8)


def _draw_interval(axes: Axes, place: float, change: float, low: float | None, high: float | None, marker: str) -> None:
    if low is not None and high is not None:
        axes.plot([place, place], [low, high], color="black", linewidth=1.5)
    axes.plot([place], [change], marker, color="black", markersize=4)
