"""Numbers of a study, from ledgers whose truth is known."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import EFFECTS, plan, rows_of, write_study

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca_study.ledger import read_ledger
from grr_coca_study.plan import METRICS, Plan, read_plan
from grr_coca_study.report.answer import answer
from grr_coca_study.report.numbers import EndpointResult, study_results
from grr_coca_study.statistics import effect_of, smallest_detectable_effect

PAIR = ("baseline_coca", "grr_coca")


@pytest.fixture(autouse=True, scope="module")
def _few_draws():
    """Intervals over images have their own tests, and take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grr_coca_study.report.endpoints.RESAMPLES", 20)
        yield


def results_of(folder, content, rows):
    write_study(folder, content, rows)
    made = read_plan(folder / "plan.yaml", Plan)
    return study_results(made, read_ledger(folder, made))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _few_draws):
    """The results of a finished study."""
    return results_of(tmp_path_factory.mktemp("whole"), plan(PAIR), rows_of(PAIR, range(8)))


def cautions(folder, results) -> str:
    """What the report says of the results in warning."""
    return "\n".join(answer(read_plan(folder / "plan.yaml", Plan), results).cautions)


def endpoint(results, arm, name):
    (found,) = (r for a in results.arms if a.arm == arm for r in a.endpoints if r.endpoint == name)
    return found


@pytest.mark.parametrize(
    ("name", "p_holm", "percents", "expected"),
    [
        ("pretraining/coca_loss", 0.047, (-3, -4, -5), "better"),
        ("pretraining/coca_loss", 0.047, (3, 4, 5), "worse"),
        ("pretraining/R@1", 0.047, (3, 4, 5), "better"),
        ("pretraining/CIDEr-D", 0.01, (-3, -4, -5), "worse"),
        ("pretraining/coca_loss", 0.06, (-3, -4, -5), "undecided"),
        ("pretraining/coca_loss", 0.06, (-0.3, 0.1, 0.2), "equal within ±2 %"),
        ("pretraining/coca_loss", 0.04, (-0.3, -0.2, -0.25), "better"),
        ("pretraining/R@1", None, (30, 31, 32), "undecided"),
        ("pretraining/R@1", None, (0.0, 0.0), "undecided"),  # the same hits with two seeds, which are too few
        ("pretraining/R@1", None, (), "nothing to compare"),
    ],
)
def test_verdicts(name, p_holm, percents, expected):
    effect = effect_of(range(len(percents)), np.log1p(np.array(percents) / 100)) if percents else None
    result = EndpointResult(
        endpoint=name,
        is_primary=p_holm is not None,
        arm_value=1.0,
        baseline_value=1.0,
        effect=effect,
        over_images=None,
        p_holm=p_holm,
    )
    assert result.verdict == expected


def test_row_of_each_stage_makes_the_endpoints(tmp_path):
    rows = rows_of(PAIR, range(2))
    found = results_of(tmp_path, plan(PAIR, 2), rows)
    value = {(r.arm, r.seed, r.stage): r.metrics["test"] for r in rows}
    tuned = ("health", "clipart", "glyphs")
    ratios = [
        [math.log(value["grr_coca", s, t]["perplexity"] / value["baseline_coca", s, t]["perplexity"]) for t in tuned]
        for s in range(2)
    ]
    fine = endpoint(found, "grr_coca", "finetuning/perplexity").effect
    assert fine.changes == pytest.approx([100 * math.expm1(np.mean(of_seed)) for of_seed in ratios])
    first = endpoint(found, "grr_coca", "pretraining/R@1")
    recalls = [value["grr_coca", s, "pictograms"]["R@1"] for s in range(2)]
    assert first.arm_value == pytest.approx(math.sqrt(math.prod(recalls)))
    assert (first.is_primary, first.p_holm) == (False, None)


def test_intervals_contain_true_effects(whole):
    truth = 100 * math.expm1(sum(EFFECTS.values()))
    effect = endpoint(whole, "grr_coca", "pretraining/coca_loss").effect
    assert effect.low < truth < effect.high
    assert whole.is_complete
    assert (whole.num_seeds, whole.missing, whole.notes) == (8, (), ())
    again = json.loads(json.dumps(to_dict(whole), allow_nan=False))
    assert again["arms"][0]["endpoints"][0]["effect"]["seeds"] == list(range(8))


def test_detectable_effects_of_primary_endpoints_are_reported(whole, tmp_path):
    found = endpoint(whole, "grr_coca", "pretraining/coca_loss")
    deviations = smallest_detectable_effect(8, 6)
    assert math.log1p(-found.smallest_shown / 100) == pytest.approx(-deviations * found.effect.deviation / 100)
    assert endpoint(whole, "grr_coca", "pretraining/R@1").smallest_shown is None
    few = endpoint(results_of(tmp_path, plan(PAIR, 6), rows_of(PAIR, range(6))), "grr_coca", "pretraining/coca_loss")
    assert few.effect.p_t < 0.001, "however small p is, six seeds decide nothing of six endpoints"
    assert (few.p_holm, few.smallest_shown) == (None, None)


def test_t_test_decides_if_a_seed_disagrees(tmp_path):
    """Seven seeds of eight fall by 3 to 5 %, one rises."""
    from scipy import stats  # late: half a second, in each worker

    ratios = [0.95, 0.96, 0.97, 0.95, 0.96, 0.97, 0.96, 1.005]
    rows = [
        replace(row, metrics={"test": {**dict.fromkeys(METRICS, 2.0), "coca_loss": 2.0 * factor}})
        for row in rows_of(PAIR, range(8))
        for factor in (ratios[row.seed] if row.arm == "grr_coca" else 1.0,)
    ]
    found = endpoint(results_of(tmp_path, plan(PAIR), rows), "grr_coca", "pretraining/coca_loss")
    assert found.effect.p_t == pytest.approx(stats.ttest_1samp(np.log(ratios), 0).pvalue)
    assert found.p_holm == pytest.approx(6 * found.effect.p_t), "of six endpoints, four do not differ at all"
    assert found.verdict == "better"


def test_unfinished_study_lists_missing_runs(tmp_path):
    rows = [r for r in rows_of(PAIR, range(3)) if (r.arm, r.seed, r.stage) != ("grr_coca", 2, "glyphs")]
    found = results_of(tmp_path, plan(PAIR, 4), rows)
    assert (found.num_rows, found.num_planned_rows, found.num_seeds) == (23, 32, 2)
    assert [line for line in found.missing if "glyphs" in line] == [
        "baseline_coca, glyphs, seeds: 3",
        "grr_coca, glyphs, seeds: 2, 3",
    ]
    assert endpoint(found, "grr_coca", "pretraining/coca_loss").effect.seeds == (0, 1, 2)
    assert endpoint(found, "grr_coca", "finetuning/coca_loss").effect.seeds == (0, 1)


@pytest.mark.parametrize(("metric", "value"), [("R@1", 0.0), ("R@1", math.inf), ("CIDEr-D", None), ("coca_loss", None)])
def test_results_without_a_ratio_are_excluded_and_named(tmp_path, metric, value):
    def broken(row):
        if (row.arm, row.seed, row.stage) != ("grr_coca", 1, "pictograms"):
            return row
        test = {**row.metrics["test"], metric: value}
        return replace(row, metrics={"test": {name: number for name, number in test.items() if number is not None}})

    found = results_of(tmp_path, plan(PAIR, 3), map(broken, rows_of(PAIR, range(3))))
    assert endpoint(found, "grr_coca", f"pretraining/{metric}").effect.seeds == (0, 2)
    assert endpoint(found, "grr_coca", "pretraining/perplexity").effect.seeds == (0, 1, 2)
    (note,) = found.notes
    assert re.match(
        rf"grr_coca, .*{metric.split('_')[-1]}.* after pretraining: not measured, NaN, .* with seeds 1", note
    )
    assert ("Some endpoints lack seeds" in cautions(tmp_path, found)) is (metric == "coca_loss"), "of the primary ones"
    # A caption score is measured if an endpoint needs it, so the run is repeated.
    assert found.missing == (("grr_coca, pictograms, seeds: 1",) if metric == "CIDEr-D" else ())


def test_diverged_run_is_reported_and_not_awaited(tmp_path):
    """Seed 3 is in no comparison: fine-tunings have nothing to start from."""
    arms = (*PAIR, "baseline_rms")
    rows = [row for row in rows_of(arms, range(8)) if (row.arm, row.seed) != ("baseline_coca", 3)]
    rows += [
        replace(row, kind="diverged", metrics={})
        for row in rows_of(arms, range(8))
        if (row.arm, row.seed, row.stage) in (("baseline_coca", 3, "pictograms"), ("grr_coca", 5, "health"))
    ]
    write_study(tmp_path, plan(arms), rows)
    made = read_plan(tmp_path / "plan.yaml", Plan)
    ledger = read_ledger(tmp_path, made)
    found = study_results(made, ledger)
    assert [(row.arm, row.seed) for row in ledger.diverged] == [("baseline_coca", 3)], "seed 5 was run again, and ended"
    assert (found.num_seeds, found.num_lost_seeds, found.num_rows) == (7, 1, 3 * 8 * 4 - 4)
    assert (found.is_complete, found.missing) == (True, ())
    assert found.lost == tuple(f"baseline_coca, {stage}, seeds: 3" for stage in found.stages)
    assert found.notes[-4:] == tuple(f"diverged, {line}" for line in found.lost)
    assert cautions(tmp_path, found).startswith("1 of 8 seeds cannot be compared, because a run diverged.")


def test_costs_are_medians_over_seeds(tmp_path):
    rows = [
        *rows_of(["baseline_coca"], range(3), seconds=100.0),
        *rows_of(["grr_coca"], range(2), seconds=120.0, training_flops=2_500_000_000_000),
        *rows_of(["grr_coca"], [2], seconds=7.0),
    ]
    baseline, grr = results_of(tmp_path, plan(PAIR, 3), rows).costs
    assert (baseline.seconds["pictograms"], grr.seconds["pictograms"]) == (100.0, 120.0)
    assert grr.training_flops["pictograms"] == 2_500_000_000_000


@pytest.mark.parametrize(("factor", "is_near"), [(0.94, False), (0.96, True), (1.1, True)])
def test_contrastive_losses_at_chance_are_reported(tmp_path, factor, is_near):
    """Of 32 pairs, a model that guesses has a loss of ln 32 = 3.47; from 95 % of it on, a loss says nothing."""

    def lifted(row):
        if row.stage != "health":
            return row
        loss = factor * math.log(32) * (1.01 if row.seed % 2 else 1 / 1.01)  # the geometric mean over seeds is exact
        test = {**row.metrics["test"], "contrastive_loss": loss, "contrastive_batch_size": 32.0}
        return replace(row, metrics={**row.metrics, "test": test})

    found = results_of(tmp_path, plan(PAIR, 2), map(lifted, rows_of(PAIR, range(2))))
    assert [(each.stage, each.batch_size, round(each.chance, 2)) for each in found.near_chance] == (
        [("health", 32, 3.47)] if is_near else []
    )
    message = (
        "After health, contrastive losses on test are about as high as by guessing (3.47, the logarithm of the 32 pairs"
    )
    assert cautions(tmp_path, found).startswith(message) is is_near
