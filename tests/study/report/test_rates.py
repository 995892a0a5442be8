"""Loss against rate, and best against best: on rows whose answer was worked out by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.study.ledger import Ledger, LedgerRow
from grr_coca.study.plan import Arm, Endpoints, Plan
from grr_coca.study.report.page import write_study_report
from grr_coca.study.report.rates import (
    RateCurve,
    best_against_best,
    rate_figure,
    rate_results,
    rate_tables,
    rates_answer,
    rates_as_plain,
)
from grr_coca.study.statistics import as_percent
from synthetic_study import write_study

RATES = (0.003, 0.006, 0.012)
E = math.e


def arm(preset: str, title: str, rate: float) -> Arm:
    return Arm(name=f"{preset}_{rate}", title=f"{title}, {rate}", preset=preset, overrides={"optimizer.lr": rate})


def plan(seeds: int) -> Plan:
    models = {"grr_coca": "GRR-CoCa", "baseline_coca": "Baseline CoCa"}
    return Plan(
        arms=tuple(arm(preset, title, rate) for rate in RATES for preset, title in models.items()),
        baseline="baseline_coca_0.012",
        seeds=tuple(range(seeds)),
        pretrain="pictograms.yaml",
        endpoints=Endpoints(primary=("pretraining/coca_loss",)),
        showcase="test",
    )


def row(arm_name: str, seed: int, val: float, test: float) -> LedgerRow:
    return LedgerRow(
        arm=arm_name,
        seed=seed,
        stage="pictograms",
        recipe_digest="0" * 16,
        data_digest="d" * 16,
        commit="c",
        machine="m",
        precision="fp32",
        steps=6,
        seconds=1.0,
        parameters=2,
        image_encoder_parameters=1,
        flops_per_pair=1,
        metrics={"val": {"coca_loss": val}, "test": {"coca_loss": test}},
    )


def ledger(val: dict[str, list[list[float]]], test: dict[str, list[list[float]]]) -> Ledger:
    """Logs of losses by preset, rate and seed."""
    rows = [
        row(f"{preset}_{rate}", seed, E**log_val, E ** test[preset][index][seed])
        for preset, by_rate in val.items()
        for index, rate in enumerate(RATES)
        for seed, log_val in enumerate(by_rate[index])
    ]
    return Ledger(tuple(rows), (), (), ())


VAL = {"grr_coca": [[0.3, 0.4], [0.1, 0.2], [0.2, 0.3]], "baseline_coca": [[0.5, 0.5], [0.3, 0.3], [0.1, 0.1]]}
TEST = {
    "grr_coca": [[0.40, 0.50], [0.30, 0.32], [0.00, 0.00]],  # the best on test is not the one that is chosen
    "baseline_coca": [[0.60, 0.66], [0.40, 0.42], [0.35, 0.38]],
}


def test_each_model_is_compared_at_the_rate_that_is_best_on_val():
    (found,) = rate_results(plan(2), ledger(VAL, TEST))
    assert (found.model.title, found.baseline.title) == ("GRR-CoCa", "Baseline CoCa")
    assert (found.model.best_rate, found.baseline.best_rate) == (0.006, 0.012)
    assert (found.model.is_best_at_edge, found.baseline.is_best_at_edge) == (False, True)
    effect = found.best.effect
    assert effect.changes == pytest.approx(as_percent(np.array([0.30 - 0.35, 0.32 - 0.38])))
    assert effect.change == pytest.approx(as_percent(-0.055))
    # Two seeds, the same choice in each draw: one draw in four has the first seed twice, one the second.
    assert (found.best.low, found.best.high) == pytest.approx((as_percent(-0.06), as_percent(-0.05)))
    assert found.best.kept == 1.0


def test_the_difference_at_each_rate_and_its_growth_with_the_rate():
    (found,) = rate_results(plan(2), ledger(VAL, TEST))
    assert list(found.at_rates) == list(RATES)
    assert found.at_rates[0.003].change == pytest.approx(as_percent((-0.20 - 0.16) / 2))
    # By doublings, the seeds' differences are -0.20, -0.10, -0.35 and -0.16, -0.10, -0.38; a line through three evenly
    # spaced points has half of last minus first as its slope.
    assert found.interaction is not None
    assert found.interaction.changes == pytest.approx(as_percent(np.array([-0.15 / 2, -0.22 / 2])))


def test_a_draw_of_seeds_chooses_its_own_rate():
    """The first seed is for the first rate, the second for the second by a little less, so both together are for the
    first. Only draws of the second seed alone choose another rate, where the endpoint is much better."""
    model = RateCurve(
        "A", ("low", "high"), (1.0, 2.0), np.exp([[0.0, 0.4], [0.5, 0.1]]), np.exp([[0.2, 0.2], [9.0, -1.0]])
    )
    baseline = RateCurve("B", ("only",), (1.0,), np.ones((1, 2)), np.ones((1, 2)))
    found = best_against_best(model, baseline, (0, 1))
    assert model.best == 0
    assert found.effect.change == pytest.approx(as_percent(0.2))
    assert (found.low, found.high) == pytest.approx((as_percent(-1.0), as_percent(0.2)))
    assert found.kept == pytest.approx(3 / 4, abs=0.03)


def test_a_rate_at_which_a_run_diverged_is_never_the_best():
    whole = ledger(VAL, TEST)
    gone = next(r for r in whole.rows if (r.arm, r.seed) == ("grr_coca_0.006", 1))
    left = tuple(r for r in whole.rows if r is not gone)
    torn = replace(whole, rows=left, diverged=(replace(gone, kind="diverged", metrics={}),))
    (found,) = rate_results(plan(2), torn)
    assert found.model.best_rate == 0.012
    assert list(found.at_rates) == [0.003, 0.012]
    assert [line[3] for line in rate_tables(found)[1].rows] == ["1.4191", "diverged", "1.2840*"]


def test_a_model_that_diverged_at_every_rate_has_no_best():
    whole = ledger(VAL, TEST)
    gone = tuple(replace(row, metrics={}) for row in whole.rows if row.arm.startswith("grr_coca"))
    left = tuple(row for row in whole.rows if not row.arm.startswith("grr_coca"))
    assert rate_results(plan(2), replace(whole, rows=left, diverged=gone)) == []


def test_seeds_that_lack_a_rate_are_left_out():
    whole = ledger(VAL, TEST)
    partial = replace(whole, rows=tuple(r for r in whole.rows if (r.arm, r.seed) != ("baseline_coca_0.003", 1)))
    (found,) = rate_results(plan(2), partial)
    assert found.seeds == (0,)
    assert found.best.effect.change == pytest.approx(as_percent(-0.05))
    assert (found.best.low, found.best.effect.low, found.best.kept) == (None, None, None)
    assert "draws chose these" not in rate_tables(found)[0].note, "nothing was drawn"
    assert rate_results(plan(2), replace(whole, rows=())) == []


def test_rates_may_be_written_as_yaml_reads_them():
    """YAML reads `6e-3` as a string, with which the recipe is fine."""
    asked = plan(2)
    arms = tuple(
        replace(arm, title=None, overrides={"optimizer.lr": f"{1000 * arm.overrides['optimizer.lr']:g}e-3"})
        for arm in asked.arms
    )
    (found,) = rate_results(replace(asked, arms=arms), ledger(VAL, TEST))
    assert found.model.rates == RATES
    assert found.model.title == "grr_coca", "the name of its first arm, grr_coca_0.003, without the rate"


def test_arms_without_a_rate_of_their_own_are_in_no_curve_and_named():
    whole = ledger(VAL, TEST)
    others = (
        Arm(name="plain", title="Plain", preset="grr_coca"),
        Arm(name="twice", title="Twice", preset="grr_coca", overrides={"optimizer.lr": 0.006}),
        Arm(name="longer", title="Longer", preset="grr_coca", overrides={"optimizer.lr": 0.006}, recipes="own"),
    )
    added = tuple(row(arm.name, seed, 0.1, 0.1) for arm in others for seed in (0, 1))
    asked = replace(plan(2), arms=(*others, *plan(2).arms))
    found = rate_results(asked, replace(whole, rows=(*whole.rows, *added)))
    assert [(each.model.title, each.model.rates) for each in found] == [
        ("GRR-CoCa", RATES),
        ("Longer", (0.006,)),  # another model, since its recipes differ
    ]
    assert found[0].model.arms[1] == "twice", "the first arm with this rate"
    json.dumps([rates_as_plain(each) for each in found], allow_nan=False)
    told = (
        "Without Plain and GRR-CoCa, 0.006: an arm needs a rate of its own (overrides: optimizer.lr) that no other arm "
        "of its model has."
    )
    assert rates_answer(asked, found).cautions[-1] == told
    assert rates_answer(asked, found[1:]).cautions[-1] == (
        "Without GRR-CoCa: no seed has every rate, or a run diverged at each."
    )
    rated = (arm for arm in plan(2).arms if arm.preset == "grr_coca")
    bare = replace(plan(2), arms=(Arm(name="baseline_coca"), *rated), baseline="baseline_coca")
    rows = (*whole.rows, *(row("baseline_coca", seed, 0.1, 0.1) for seed in (0, 1)))
    assert rate_results(bare, replace(whole, rows=rows)) == [], "the baseline has no rate"


def test_an_endpoint_of_fine_tuning_is_measured_after_fine_tuning():
    """The rate is chosen after pretraining all the same. Of two fine-tunings it is the geometric mean."""
    whole = ledger(VAL, TEST)
    asked = replace(
        plan(2),
        finetune=("health.yaml", "glyphs.yaml"),
        endpoints=Endpoints(primary=("finetuning/coca_loss", "finetuning/perplexity")),
    )
    tuned = [
        replace(each, stage=stage, metrics={"test": {"coca_loss": each.metrics["test"]["coca_loss"] * factor}})
        for stage, factor in (("health", 4.0), ("glyphs", 9.0))
        for each in whole.rows
    ]
    pretrained = [
        replace(each, metrics={"val": each.metrics["val"], "test": {"coca_loss": 77.0}}) for each in whole.rows
    ]
    (found,) = rate_results(asked, replace(whole, rows=(*pretrained, *tuned)))
    assert found.model.test[1] == pytest.approx([6 * E**0.3, 6 * E**0.32])
    assert found.best.effect.change == pytest.approx(as_percent(-0.055))
    assert rate_results(asked, replace(whole, rows=tuple(pretrained))) == [], "no seed is fine-tuned yet"
    answer, losses = rate_tables(found)
    assert "CoCa loss after fine-tuning on the test split" in answer.note
    assert losses.note.endswith("On val: CoCa loss after pretraining; on test: CoCa loss after fine-tuning.")
    assert (
        "Nothing is decided on perplexity after fine-tuning: only the first primary endpoint is."
        in rates_answer(asked, [found]).cautions
    )


def test_a_rate_whose_recall_is_zero_is_not_chosen_in_a_draw():
    """It has no logarithm. On `val`, draws of the second seed alone are for it."""
    found = rate_results(*with_recalls([[0.1, 0.1], [0.2, 0.2], [0.3, 0.0]]))[0]
    assert found.model.best_rate == 0.006
    assert found.best.low is not None
    assert math.isfinite(found.best.low)
    assert list(found.at_rates) == [0.003, 0.006]
    assert rate_tables(found)[1].rows[2][3:] == ("diverged or 0", "–")
    assert rate_results(*with_recalls([[0.0, 0.1]] * 3)) == [], "no rate can be compared"


def with_recalls(of_model: list[list[float]]) -> tuple[Plan, Ledger]:
    """A plan of R@1 on the split `test_style`, and its rows: of the model by rate and seed, 0.1 of the baseline."""
    val = {"grr_coca": [[0.3, 0.3], [0.1, 0.2], [0.4, 0.1]], "baseline_coca": VAL["baseline_coca"]}
    asked = replace(plan(2), endpoints=Endpoints(primary=("pretraining/R@1",), split="test_style"))
    recalls = {f"grr_coca_{rate}": found for rate, found in zip(RATES, of_model, strict=True)}
    rows = tuple(
        replace(r, metrics={"val": r.metrics["val"], "test_style": {"R@1": recalls.get(r.arm, [0.1, 0.1])[r.seed]}})
        for r in ledger(val, TEST).rows
    )
    return asked, Ledger(rows, (), (), ())


def test_the_split_is_named():
    found = rate_results(*with_recalls([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]))[0]
    answer, losses = rate_tables(found)
    assert "in R@1, text to image on the test_style split" in answer.note
    assert losses.heads[1:3] == ("Baseline CoCa, val", "Baseline CoCa, test_style")
    assert "R@1, text to image on test_style" in rate_figure(found)


def test_a_plan_whose_arms_differ_in_more_than_the_rate_has_no_rate_curves():
    arms = (Arm(name="grr_coca"), Arm(name="baseline_coca"))
    rows = tuple(row(name, 0, 1.0, 1.0) for name in ("grr_coca", "baseline_coca"))
    assert rate_results(replace(plan(1), arms=arms, baseline="baseline_coca"), Ledger(rows, (), (), ())) == []


def test_the_tables_say_what_was_chosen_and_what_may_lie_beyond():
    (found,) = rate_results(plan(2), ledger(VAL, TEST))
    answer, losses = rate_tables(found)
    assert answer.rows[0][0] == "best against best: GRR-CoCa at 0.006 and Baseline CoCa at 0.012"
    assert answer.rows[0][1].startswith("−5.4")
    assert answer.rows[0][2:] == ("–", "−5.8 to −4.9"), "rows without values of images"
    assert "The best rate of Baseline CoCa is at the edge" in answer.note
    assert losses.rows[1] == ("0.006", "1.3499", "1.5068", "1.1618*", "1.3634")


def test_intervals_over_both_draw_seeds_and_images_at_each_rate():
    """Each of eight images has the loss of its split, so that seeds alone differ: those of two are drawn."""

    def with_images(row: LedgerRow) -> LedgerRow:
        loss = row.metrics["test"]["coca_loss"]
        return replace(
            row,
            metrics={**row.metrics, "test": {"captioning_loss": loss}},
            values={"test": {"nll": 8 * [loss], "tokens": 8 * [1]}},
        )

    asked = replace(plan(2), endpoints=Endpoints(primary=("pretraining/captioning_loss",)))
    (found,) = rate_results(asked, Ledger(tuple(map(with_images, ledger(VAL, TEST).rows)), (), (), ()))
    assert found.best_over_both == pytest.approx((as_percent(-0.06), as_percent(-0.05))), "0.006 over 0.012"
    assert found.at_rates_over_both[0.012] == pytest.approx((as_percent(-0.38), as_percent(-0.35)))
    assert rate_tables(found)[0].rows[0][2] == "−5.8 to −4.9"


def test_the_figure_shows_both_models_and_every_rate():
    (found,) = rate_results(plan(2), ledger(VAL, TEST))
    svg = rate_figure(found)
    assert svg == rate_figure(found)
    for text in ("GRR-CoCa", "Baseline CoCa", "0.003", "0.012", "CoCa loss on val", "CoCa loss on test", "best"):
        assert f">{text}" in svg


def test_a_report_shows_each_model_at_its_best_rate(tmp_path):
    whole = ledger(VAL, TEST)
    with_recall = (replace(r, metrics={**r.metrics, "test": {**r.metrics["test"], "R@1": 0.25}}) for r in whole.rows)
    endpoints = Endpoints(primary=("pretraining/coca_loss",), secondary=("pretraining/R@1",))
    write_study(tmp_path, to_dict(replace(plan(2), endpoints=endpoints)), with_recall)
    write_study_report(tmp_path, tmp_path)
    page, tables = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for text in (page, tables):
        assert "best against best: GRR-CoCa at 0.006 and Baseline CoCa at 0.012" in text
        assert "Secondary endpoints, each at its best rate" in text
    assert "| GRR-CoCa, 0.006 | Baseline CoCa, 0.012 |" in tables
    assert "<h2>GRR-CoCa at its best learning rate</h2>" in page
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["learning_rates"]
    assert [each["model"]["best_rate"] for each in found] == [0.006]


def eight_seeds(best_on_test: list[float]) -> tuple[Plan, Ledger]:
    """The model's best rate is 0.006 and the baseline's 0.012; there the baseline's log loss on `test` is 0.3."""
    flat = {rate: [level] * 8 for rate, level in zip(RATES, (0.3, 0.1, 0.2), strict=True)}
    val = {"grr_coca": list(flat.values()), "baseline_coca": [[0.5] * 8, [0.3] * 8, [0.1] * 8]}
    test = {"grr_coca": [[0.5] * 8, best_on_test, [0.4] * 8], "baseline_coca": [[0.6] * 8, [0.4] * 8, [0.3] * 8]}
    return plan(8), ledger(val, test)


@pytest.mark.parametrize(
    ("on_test", "headline"),
    [
        ([0.2, 0.21, 0.19, 0.2, 0.22, 0.2, 0.18, 0.2], "GRR-CoCa is better than Baseline CoCa, each at its best rate"),
        ([0.4, 0.41, 0.39, 0.4, 0.42, 0.4, 0.38, 0.4], "GRR-CoCa is worse than Baseline CoCa, each at its best rate"),
        (
            [0.2, 0.41, 0.29, 0.3, 0.32, 0.3, 0.28, 0.31],
            "No difference between GRR-CoCa and Baseline CoCa is shown, each at its best rate",
        ),
        (
            [0.3, 0.31, 0.29, 0.3, 0.302, 0.3, 0.298, 0.3],
            "GRR-CoCa and Baseline CoCa are equal within ±2 %, each at its best rate",
        ),
    ],
)
def test_the_answer_compares_best_with_best(on_test, headline):
    asked, rows = eight_seeds(on_test)
    found = rates_answer(asked, rate_results(asked, rows))
    assert (found.question, found.headline) == (
        "Is GRR-CoCa better than Baseline CoCa, each at its best learning rate?",
        headline,
    )


def test_an_answer_of_few_seeds_decides_nothing():
    two = rates_answer(plan(2), rate_results(plan(2), ledger(VAL, TEST)))
    assert two.headline.startswith("Not enough seeds to decide")
    asked, rows = eight_seeds([0.2] * 7 + [0.21])
    begun = replace(rows, rows=tuple(row for row in rows.rows if row.seed < 6))
    found = rates_answer(asked, rate_results(asked, begun))
    assert found.headline.startswith("So far, with 6 of 8 seeds complete: GRR-CoCa is better")
    assert found.cautions[-1].startswith("Wait for all seeds")
