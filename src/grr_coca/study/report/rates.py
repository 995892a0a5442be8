"""Compare models that were trained at several learning rates, each at its own best rate.

A plan says arm × rate by arms of one preset that override `optimizer.lr`. A model's rate is chosen by its CoCa loss
on `val`, and the choice is repeated in each draw of the bootstrap: an interval at rates that were chosen once would be
too narrow, since other seeds might have chosen others.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.study.drawing import COLOURS, FAINT, new_figure, style_axes, svg_text
from grr_coca.study.ledger import Ledger
from grr_coca.study.plan import SIGNIFICANCE_LEVEL, Arm, Plan, arm_named, stage_names
from grr_coca.study.report.numbers import (
    Effect,
    Endpoint,
    Rows,
    effect_of,
    endpoint_values,
    image_intervals,
    lost_runs,
    rows_by_run,
    stages_of,
)
from grr_coca.study.report.tables import Table, effect_cell
from grr_coca.study.report.verdict import Answer, arm_titles, capitalized, listed, signed
from grr_coca.study.statistics import LEVEL, MARGIN, RESAMPLES, as_percent, min_seeds

RATE = "optimizer.lr"
CHOSEN_ON_VAL = "pretraining/coca_loss"


@dataclass(frozen=True)
class RateCurve:
    """Losses of a model by learning rate, the rates in ascending order.

    Shapes: R rates, S seeds. `arms`: their names, by rate. `val`: the CoCa loss on the validation split after
    pretraining, by which rates are chosen; infinite where a run diverged, or has no value of the endpoint. `test`: the
    endpoint; NaN there.
    """

    title: str
    arms: tuple[str, ...]
    rates: tuple[float, ...]
    val: Float[np.ndarray, "R S"]
    test: Float[np.ndarray, "R S"]

    @property
    def losses(self) -> dict[str, Float[np.ndarray, "R S"]]:
        """The two tables by name."""
        return {"val": self.val, "test": self.test}

    @property
    def best(self) -> int:
        """Index of the best rate: that with the lowest mean logarithm of the loss on `val`; of equals the lowest."""
        return int(np.log(self.val).mean(axis=1).argmin())

    @property
    def best_rate(self) -> float:
        """The best rate."""
        return self.rates[self.best]

    @property
    def is_best_at_edge(self) -> bool:
        """True if the best rate is the lowest or the highest. A better one may then lie beyond."""
        return self.best in (0, len(self.rates) - 1)


@dataclass(frozen=True)
class BestAgainstBest:
    """A model over the baseline, each at its best rate.

    `effect`: over seeds, with the rates as they were chosen. `low`, `high`: ends in per cent of the percentile
    bootstrap's interval over seeds, with the rates chosen anew in each draw; `kept`: the share of draws that chose the
    same two rates. All three are None for a single seed.
    """

    effect: Effect
    low: float | None
    high: float | None
    kept: float | None


@dataclass(frozen=True, kw_only=True)
class RateResults:
    """A model and the baseline over the seeds that have every rate of both.

    - `split`: the test split of the endpoint
    - `at_rates`: the model over the baseline at each rate that both have; without rates at which a run diverged
    - `best_over_both`, `at_rates_over_both`: 95 % intervals in per cent over seeds and images at once, with the rates
      as they were chosen; None for a single seed, or if the ledger lacks the values
    - `interaction`: by how much this change grows when the rate is doubled, from a line through the seed's changes by
      the logarithm of the rate; None where fewer than two rates can be compared
    """

    endpoint: Endpoint
    split: str
    seeds: tuple[int, ...]
    model: RateCurve
    baseline: RateCurve
    best: BestAgainstBest
    at_rates: dict[float, Effect]
    best_over_both: tuple[float, float] | None
    at_rates_over_both: dict[float, tuple[float, float] | None]
    interaction: Effect | None


def rate_results(plan: Plan, ledger: Ledger) -> list[RateResults]:
    """Every model of the plan against the model of its baseline, on the first primary endpoint.

    Returns:
        Nothing if no model has two rates, the baseline has none, or no seed has all of them. A model that diverged at
        every rate is left out.
    """
    endpoint = Endpoint(plan.endpoints.primary[0])
    models, baseline = _arms_by_model(plan), _model_of(arm_named(plan, plan.baseline))
    if baseline not in models or all(len(arms) == 1 for arms in models.values()):
        return []
    rows, needed = rows_by_run(ledger.rows), {stage_names(plan)[0], *stages_of(plan, endpoint)}
    lost = lost_runs(ledger, rows, stage_names(plan))
    found = []
    for model in models:
        arms = [*models[model].values(), *models[baseline].values()]
        runs = {seed: {(arm.name, seed, stage) for arm in arms for stage in needed} for seed in plan.seeds}
        seeds = tuple(seed for seed in plan.seeds if runs[seed] <= rows.keys() | lost)
        if model != baseline and seeds:
            ours, theirs = (_curve(plan, endpoint, models[each], rows, seeds) for each in (model, baseline))
            if not all(np.isfinite(curve.test[curve.best]).all() for curve in (ours, theirs)):
                continue
            at_rates = _log_ratios(ours, theirs)
            found.append(
                RateResults(
                    endpoint=endpoint,
                    split=plan.endpoints.split,
                    seeds=seeds,
                    model=ours,
                    baseline=theirs,
                    best=best_against_best(ours, theirs, seeds),
                    at_rates={rate: _effect(ratios, seeds) for rate, ratios in at_rates.items()},
                    best_over_both=_over_both(plan, rows, (ours, ours.best_rate), (theirs, theirs.best_rate), seeds),
                    at_rates_over_both={
                        rate: _over_both(plan, rows, (ours, rate), (theirs, rate), seeds) for rate in at_rates
                    },
                    interaction=_interaction(at_rates, seeds),
                )
            )
    return found


def best_against_best(model: RateCurve, baseline: RateCurve, seeds: Sequence[int]) -> BestAgainstBest:
    """Compare a model at its best rate with the baseline at its best rate. The bootstrap resamples seeds, in pairs.

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
    (ours, has_our_rate), (theirs, has_their_rate) = (_at_best_of_draws(curve, draws) for curve in (model, baseline))
    low, high = np.quantile(ours - theirs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    kept = float(np.mean(has_our_rate & has_their_rate))
    return BestAgainstBest(effect, float(as_percent(low)), float(as_percent(high)), kept)


def rates_answer(plan: Plan, found: Sequence[RateResults]) -> Answer:
    """The answer of a study of rates: its first model against the baseline's, each at its best rate.

    Better or worse is said only of this comparison, and only if the t test over seeds at the rates as chosen passes at
    5 %, and the interval with the choice drawn excludes zero. Equal: both intervals lie within ± 2 %.
    """
    main = found[0]
    names = main.model.title, main.baseline.title
    begins, missing = "", len(plan.seeds) - len(main.seeds)
    if missing:
        begins = f"So far, with {len(main.seeds)} of {len(plan.seeds)} seeds complete: "
    headline = (
        begins
        + {
            "few": f"not enough seeds to decide whether {names[0]} is better than {names[1]}, each at its best rate",
            "open": f"no difference between {names[0]} and {names[1]} is shown, each at its best rate",
            "equal": f"{names[0]} and {names[1]} are equal within ±2 %, each at its best rate",
            "better": f"{names[0]} is better than {names[1]}, each at its best rate",
            "worse": f"{names[0]} is worse than {names[1]}, each at its best rate",
        }[_verdict(main)]
    )
    cautions = []
    if _verdict(main) == "few":
        cautions.append(f"Nothing is called better or worse with fewer than {min_seeds(1)} seeds.")
    others = [Endpoint(name) for name in plan.endpoints.primary[1:]]
    if others:
        titles = listed([endpoint.full_title for endpoint in others])
        cautions.append(f"Nothing is decided on {titles}: only the first primary endpoint is.")
    cautions += _left_out(plan, found)
    if missing and _verdict(main) in ("better", "worse"):
        cautions.append("Wait for all seeds: stopping at the first difference finds differences that do not exist.")
    question = f"Is {names[0]} better than {names[1]}, each at its best learning rate?"
    return Answer(question, capitalized(headline), tuple(cautions))


def _verdict(results: RateResults) -> Literal["few", "open", "equal", "better", "worse"]:
    best, effect = results.best, results.best.effect
    if effect.num_seeds < min_seeds(1) or effect.p_t is None or best.low is None or best.high is None:
        return "few"
    if effect.p_t > SIGNIFICANCE_LEVEL or best.low * best.high <= 0:
        is_equal = effect.is_equivalent and max(-best.low, best.high) < MARGIN
        return "equal" if is_equal else "open"
    return "better" if (effect.change < 0) == results.endpoint.lower_is_better else "worse"


def rates_as_plain(results: RateResults) -> dict[str, object]:
    """The results with lists for arrays, for JSON. A loss of a run that diverged is null."""

    def curve(found: RateCurve) -> dict[str, object]:
        losses = {
            split: [[loss if math.isfinite(loss) else None for loss in row] for row in table.tolist()]
            for split, table in found.losses.items()
        }
        return {"title": found.title, "rates": list(found.rates), "best_rate": found.best_rate, **losses}

    return {
        "endpoint": results.endpoint.name,
        "split": results.split,
        "seeds": list(results.seeds),
        "model": curve(results.model),
        "baseline": curve(results.baseline),
        "best": to_dict(results.best),
        "best_over_both": results.best_over_both,
        "at_rates": {f"{rate:g}": to_dict(effect) for rate, effect in results.at_rates.items()},
        "at_rates_over_both": {f"{rate:g}": found for rate, found in results.at_rates_over_both.items()},
        "interaction": None if results.interaction is None else to_dict(results.interaction),
    }


def rate_tables(results: RateResults) -> list[Table]:
    """The answer, and the losses at each rate."""
    model, baseline = results.model, results.baseline
    name, count = _endpoint_title(results), f"{len(results.seeds)} seed{'' if len(results.seeds) == 1 else 's'}"
    best, effect = results.best, results.best.effect
    with_choice = _ends(None if best.low is None or best.high is None else (best.low, best.high))
    at_best = f"best against best: {_rate(model)} and {_rate(baseline)}"
    lines = [
        (at_best, effect_cell(effect), _ends(results.best_over_both), with_choice),
        *(
            (f"both at {rate:g}", effect_cell(found), _ends(results.at_rates_over_both[rate]), "–")
            for rate, found in results.at_rates.items()
        ),
        ("more for each doubling of the rate", effect_cell(results.interaction), "–", "–"),
    ]
    edges = [curve.title for curve in (model, baseline) if curve.is_best_at_edge]
    note = (
        f"{model.title} over {baseline.title} in {name} on the {results.split} split, in %, {count}. The best rate has "
        "the lowest CoCa loss on val. First interval: Student's t over seeds, with the rates as chosen. Over both: a "
        "bootstrap of seeds and images at once, with the rates as chosen. With the choice drawn: a bootstrap of the "
        "seeds in which each draw chooses its rates"
    )
    if best.kept is not None:
        note += f"; {100 * best.kept:.0f} % of the draws chose these. Over few seeds it is too narrow"
    note += "."
    if edges:
        note += f" The best rate of {' and of '.join(edges)} is at the edge of the grid: a better one may lie beyond."
    answer = Table(
        "Best against best", ("rates", "change, %", "over both", "with the choice drawn"), tuple(lines), note
    )
    heads = ("rate", *(f"{curve.title}, {split}" for curve in (baseline, model) for split in ("val", results.split)))
    rates = sorted({*model.rates, *baseline.rates})
    why_none = "diverged" if results.endpoint.lower_is_better else "diverged or 0"
    losses = tuple(
        (f"{rate:g}", *(cell for curve in (baseline, model) for cell in _loss_cells(curve, rate, why_none)))
        for rate in rates
    )
    told = "Geometric means over the seeds; star: the best on val."
    if results.endpoint.name != CHOSEN_ON_VAL:
        told += f" On val: {Endpoint(CHOSEN_ON_VAL).full_title}; on {results.split}: {results.endpoint.full_title}."
    return [answer, Table("Losses by rate", heads, losses, told)]


def at_best_rates(plan: Plan, results: RateResults) -> Plan:
    """The plan with two arms alone: the model and the baseline, each at its best rate."""
    arm, over = (arm_named(plan, curve.arms[curve.best]) for curve in (results.model, results.baseline))
    return replace(plan, arms=(arm, over), baseline=over.name)


def rate_figure(results: RateResults) -> str:
    """Draw the loss by learning rate on both splits, and the change against the baseline.

    A curve for each model has the range of its seeds, and its best rate is ringed. The changes are those at each rate
    and that of best against best, with intervals.
    """
    figure = new_figure(3.2)
    val, test, change = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    titles = {"val": "CoCa loss on val", "test": f"{_endpoint_title(results)} on {results.split}"}
    for axes, split in ((val, "val"), (test, "test")):
        for curve, colour, marker in zip((results.model, results.baseline), COLOURS, ("o", "s"), strict=True):
            _draw_curve(axes, curve, curve.losses[split], colour, marker)
        style_axes(axes, titles[split])
        axes.set_xlabel("learning rate; ringed: best on val", fontsize=8)
        _rate_ticks(axes, sorted({*results.model.rates, *results.baseline.rates}))
    _draw_changes(change, results)
    handles, labels = val.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    return svg_text(figure)


_Model = tuple[str, str | None, str]
"""A key that is equal for arms that differ in the learning rate alone."""


def _model_of(arm: Arm) -> _Model:
    others = {key: value for key, value in arm.overrides.items() if key != RATE}
    return arm.preset_name, arm.recipes, repr(sorted(others.items()))


def _rate_of(arm: Arm) -> float | None:
    """The learning rate that an arm overrides; None: that of its recipe, which a report does not read."""
    rate = arm.overrides.get(RATE)
    return None if rate is None else float(str(rate))  # YAML reads `1e-3` as a string


def _arms_by_model(plan: Plan) -> dict[_Model, dict[float, Arm]]:
    """The arms that have a learning rate of their own by model, then by rate in ascending order."""
    models: dict[_Model, dict[float, Arm]] = {}
    for arm in plan.arms:
        if (rate := _rate_of(arm)) is not None:
            models.setdefault(_model_of(arm), {}).setdefault(rate, arm)
    return {model: dict(sorted(arms.items())) for model, arms in models.items()}


def _left_out(plan: Plan, found: Sequence[RateResults]) -> list[str]:
    """Sentences on arms that are in no curve, and on models that have a curve but no results."""
    titles, models = arm_titles(plan), _arms_by_model(plan)
    shown = {name for results in found for curve in (results.model, results.baseline) for name in curve.arms}
    drawn = {arm.name for arms in models.values() for arm in arms.values()}
    arms = [titles[arm.name] for arm in plan.arms if arm.name not in drawn]
    unknown = [_model_title(plan, of) for of in models.values() if not any(arm.name in shown for arm in of.values())]
    reasons = {
        f"an arm needs a rate of its own (overrides: {RATE}) that no other arm of its model has": arms,
        "no seed has every rate, or a run diverged at each": unknown,
    }
    return [f"Without {listed(names)}: {reason}." for reason, names in reasons.items() if names]


def _endpoint_title(results: RateResults) -> str:
    endpoint = results.endpoint
    return endpoint.title if endpoint.phase == "pretraining" else endpoint.full_title


def _curve(plan: Plan, endpoint: Endpoint, arms: Mapping[float, Arm], rows: Rows, seeds: Sequence[int]) -> RateCurve:
    pretraining, chosen_by = stage_names(plan)[0], Endpoint(CHOSEN_ON_VAL).metric
    values = {arm.name: endpoint_values(rows, plan, endpoint, arm.name) for arm in arms.values()}

    def val(arm: str, seed: int) -> float:
        row = rows.get((arm, seed, pretraining)) if seed in values[arm] else None
        return row.metrics.get("val", {}).get(chosen_by, math.inf) if row else math.inf

    return RateCurve(
        title=_model_title(plan, arms),
        arms=tuple(values),
        rates=tuple(arms),
        val=np.array([[val(arm, seed) for seed in seeds] for arm in values]),
        test=np.array([[of_arm.get(seed, math.nan) for seed in seeds] for of_arm in values.values()]),
    )


def _model_title(plan: Plan, arms: Mapping[float, Arm]) -> str:
    """The title of a model's first arm without the rate at its end, such as `GRR-CoCa, 0.006`."""
    rate, arm = next(iter(arms.items()))
    title = arm_titles(plan)[arm.name]
    for written in (str(arm.overrides[RATE]), f"{rate:g}"):
        title = title.removesuffix(written).rstrip(" ,_-") or title
    return title


def _effect(log_ratios: np.ndarray, seeds: Sequence[int]) -> Effect:
    effect = effect_of(dict(zip(seeds, log_ratios.tolist(), strict=True)))
    assert effect is not None, "there is a seed"
    return effect


def _over_both(
    plan: Plan, rows: Rows, model: tuple[RateCurve, float], baseline: tuple[RateCurve, float], seeds: Sequence[int]
) -> tuple[float, float] | None:
    """Interval over seeds and images of a model at a rate over the baseline at a rate."""
    arm, over = (curve.arms[curve.rates.index(rate)] for curve, rate in (model, baseline))
    endpoint = Endpoint(plan.endpoints.primary[0])
    found = image_intervals(rows, replace(plan, baseline=over), endpoint, arm, seeds)
    return found.over_both if found else None


def _at_best_of_draws(
    curve: RateCurve, draws: np.ndarray
) -> tuple[Float[np.ndarray, " draws"], Bool[np.ndarray, " draws"]]:
    """The mean log of the endpoint at each draw's best rate, and whether that is the best rate of all seeds."""
    val, test = (np.log(losses)[:, draws].mean(axis=-1) for losses in (curve.val, curve.test))
    chosen = val.argmin(axis=0)
    return test[chosen, np.arange(len(chosen))], chosen == curve.best


def _log_ratios(model: RateCurve, baseline: RateCurve) -> dict[float, Float[np.ndarray, " S"]]:
    """Log of model over baseline for each seed, by learning rate, for rates that both have."""
    shared = [rate for rate in model.rates if rate in baseline.rates]
    ratios = {
        rate: np.log(model.test[model.rates.index(rate)]) - np.log(baseline.test[baseline.rates.index(rate)])
        for rate in shared
    }
    return {rate: found for rate, found in ratios.items() if np.isfinite(found).all()}


def _interaction(log_ratios: Mapping[float, np.ndarray], seeds: Sequence[int]) -> Effect | None:
    if len(log_ratios) < 2:
        return None
    doublings = np.log2(list(log_ratios))
    slopes = np.polyfit(doublings, np.array(list(log_ratios.values())), 1)[0]
    return _effect(slopes, seeds)


def _ends(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


def _rate(curve: RateCurve) -> str:
    return f"{curve.title} at {curve.best_rate:g}"


def _loss_cells(curve: RateCurve, rate: float, why_none: str) -> tuple[str, str]:
    if rate not in curve.rates:
        return "–", "–"
    index = curve.rates.index(rate)
    val, test = (float(np.exp(np.log(losses[index]).mean())) for losses in (curve.val, curve.test))
    star = "*" if index == curve.best else ""
    return (f"{val:.4f}{star}", f"{test:.4f}") if math.isfinite(val) else (why_none, "–")


def _draw_curve(axes: Axes, curve: RateCurve, losses: np.ndarray, colour: str, marker: str) -> None:
    sound = np.isfinite(losses).all(axis=1)
    rates, shown = np.array(curve.rates)[sound], losses[sound]
    mean = np.exp(np.log(shown).mean(axis=1))
    axes.fill_between(rates, shown.min(axis=1), shown.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axes.plot(rates, mean, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=curve.title)
    at_best = np.exp(np.log(losses[curve.best]).mean())
    axes.plot([curve.best_rate], [at_best], "o", markersize=9, markerfacecolor="none", markeredgecolor=colour)


def _rate_ticks(axes: Axes, rates: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize=7)
    axes.minorticks_off()


def _draw_changes(axes: Axes, results: RateResults) -> None:
    places = [float(place) for place in range(len(results.at_rates))]
    for place, effect in zip(places, results.at_rates.values(), strict=True):
        axes.plot([place] * effect.num_seeds, effect.changes, ".", color=FAINT, markersize=4)
        _draw_interval(axes, place, effect.change, effect.low, effect.high, "o")
    best, place = results.best, len(places) + 0.5
    axes.plot([place] * best.effect.num_seeds, best.effect.changes, ".", color=FAINT, markersize=4)
    _draw_interval(axes, place, best.effect.change, best.low, best.high, "D")
    style_axes(axes, textwrap.fill(f"{results.model.title} over {results.baseline.title}, % on {results.split}", 39))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks([*places, place], [*(f"{rate:g}" for rate in results.at_rates), "best"], fontsize=7)
    axes.set_xlabel("both at this rate; best: each at its own", fontsize=8)


def _draw_interval(axes: Axes, place: float, change: float, low: float | None, high: float | None, marker: str) -> None:
    if low is not None and high is not None:
        axes.plot([place, place], [low, high], color="black", linewidth=1.5)
    axes.plot([place], [change], marker, color="black", markersize=4)
