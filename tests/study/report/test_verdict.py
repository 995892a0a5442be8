"""What a study says in words, with the sign that a person expects."""

import math
from dataclasses import replace

import pytest

from grr_coca.study.ledger import read_ledger
from grr_coca.study.plan import Plan, compared_with, read_plan
from grr_coca.study.report.numbers import Endpoint, EndpointResult, effect_of, study_results
from grr_coca.study.report.verdict import answer, p_in_words, signed, verdict
from synthetic_study import arm, plan, rows_of, write_study

PAIR = ("baseline_coca", "grr_coca")


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """Intervals over images are in no sentence, and take half of the time."""
    monkeypatch.setattr("grr_coca.study.report.numbers.RESAMPLES", 20)


def effect(*percents: float):
    return effect_of({seed: math.log1p(percent / 100) for seed, percent in enumerate(percents)})


def said(folder, content, rows):
    write_study(folder, content, rows)
    made = read_plan(folder / "plan.yaml", Plan)
    return answer(made, study_results(made, read_ledger(folder, made)))


def result(name: str, p_holm: float | None, *percents: float) -> EndpointResult:
    return EndpointResult(
        endpoint=name,
        is_primary=p_holm is not None,
        arm_value=1.0,
        baseline_value=1.0,
        effect=effect(*percents),
        over_images=None,
        p_holm=p_holm,
    )


@pytest.mark.parametrize(
    ("name", "p_holm", "percents", "expected"),
    [
        ("pretraining/coca_loss", 0.047, (-3, -4, -5), "better"),
        ("pretraining/coca_loss", 0.047, (3, 4, 5), "worse"),
        ("pretraining/R@1", 0.047, (3, 4, 5), "better"),
        ("pretraining/CIDEr-D", 0.01, (-3, -4, -5), "worse"),
        ("pretraining/coca_loss", 0.06, (-3, -4, -5), "open"),
        ("pretraining/coca_loss", 0.06, (-0.3, 0.1, 0.2), "equal"),
        ("pretraining/coca_loss", 0.04, (-0.3, -0.2, -0.25), "better"),
        ("pretraining/R@1", None, (30, 31, 32), "open"),
        ("pretraining/R@1", None, (0.0, 0.0), "open"),  # the same hits with two seeds, which are too few
    ],
)
def test_verdicts(name, p_holm, percents, expected):
    assert verdict(result(name, p_holm, *percents)) == expected


def test_lower_is_better_for_losses_alone():
    names = ("coca_loss", "perplexity", "contrastive_loss_refitted", "R@1", "image_to_text/R@5", "CIDEr-D")
    better_low = {name for name in names if Endpoint(f"pretraining/{name}").lower_is_better}
    assert better_low == {"coca_loss", "perplexity", "contrastive_loss_refitted"}
    assert Endpoint("pretraining/image_to_text/R@5").full_title == "R@5, image to text after pretraining"


def test_numbers_are_told_with_a_sign():
    assert [signed(x) for x in (-2.44, 0.31, -0.04, None)] == ["−2.4", "+0.3", "0.0", "–"]
    assert [p_in_words(p) for p in (0.0004, 2 / 256, None)] == ["< 0.001", "0.008", "–"]


def test_a_gain_is_told_as_a_person_would(tmp_path):
    found = said(tmp_path, plan(PAIR), rows_of(PAIR, range(8)))
    assert found.question == "Is GRR-CoCa better than Baseline CoCa?"
    assert found.headline == "GRR-CoCa is better than Baseline CoCa in all 6 primary endpoints"
    assert found.cautions == ()


def test_a_loss_is_told_whoever_wins(tmp_path):
    turned = plan(PAIR, baseline="grr_coca")
    found = said(tmp_path, turned, rows_of(PAIR, range(8)))
    assert found.question == "Is Baseline CoCa better than GRR-CoCa?"
    assert found.headline == "Baseline CoCa is worse than GRR-CoCa in all 6 primary endpoints"


def test_noise_is_not_taken_for_an_answer(tmp_path):
    rows = [*rows_of(["baseline_coca"], range(8)), *rows_of(["coca"], range(8))]  # neither has any part
    found = said(tmp_path, plan(("baseline_coca", "coca")), rows)
    assert found.headline in (
        "No difference between coca and Baseline CoCa is shown in any of 6 primary endpoints",
        "Coca and Baseline CoCa are equal within ±2 % in all 6 primary endpoints",
    )


def test_few_seeds_cannot_decide(tmp_path):
    found = said(tmp_path, plan(PAIR), rows_of(PAIR, range(3), deviation=0.02))
    assert found.headline == (
        "So far, with 3 of 8 seeds complete: not enough seeds to decide whether GRR-CoCa is better than Baseline CoCa"
    )
    assert found.cautions[-1] == (
        "With 3 seeds, nothing is called better, worse or equal: of 6 endpoints, this takes 7 seeds, which detect a "
        "true change of two standard deviations in four studies of five."
    )


def test_seeds_that_decide_one_phase_are_not_called_too_few(tmp_path):
    """The study still runs: the last seed is pretrained, and not fine-tuned yet."""
    rows = [row for row in rows_of(PAIR, range(8)) if row.seed < 7 or row.stage == "pictograms"]
    found = said(tmp_path, plan(PAIR), rows)
    assert "7 of 8 seeds complete: GRR-CoCa is better than Baseline CoCa in " in found.headline
    assert not any("cannot decide" in caution for caution in found.cautions)


def test_whoever_looks_early_is_warned(tmp_path):
    warning = "Wait for all seeds: "
    early = said(tmp_path / "early", plan(PAIR, 12), rows_of(PAIR, range(8), deviation=0.001))
    assert "So far, with 8 of 12 seeds complete: GRR-CoCa is better" in early.headline
    assert any(caution.startswith(warning) for caution in early.cautions)
    whole = said(tmp_path / "whole", plan(PAIR), rows_of(PAIR, range(8), deviation=0.001))
    assert not any(caution.startswith(warning) for caution in whole.cautions)


def test_endpoints_that_were_not_measured_yet_are_not_counted_among_those_without_a_difference(tmp_path):
    rows = [row for row in rows_of(PAIR, range(8), deviation=0.1) if row.stage == "pictograms"]
    found = said(tmp_path, plan(PAIR), rows)
    assert found.headline == (
        "So far, with 0 of 8 seeds complete: no difference between GRR-CoCa and Baseline CoCa is shown in the 3 "
        "primary endpoints of 6 that can be compared"
    )


def test_a_seed_that_has_no_value_is_missed_aloud(tmp_path):
    def without_loss(row):
        is_bad = (row.arm, row.seed, row.stage) == ("grr_coca", 3, "pictograms")
        kept = {name: value for name, value in row.metrics["test"].items() if name != "coca_loss"}
        return replace(row, metrics={"test": kept}) if is_bad else row

    found = said(tmp_path, plan(PAIR), map(without_loss, rows_of(PAIR, range(8))))
    (left_out,) = (caution for caution in found.cautions if caution.startswith("Not all"))
    assert left_out.startswith("Not all 8 seeds are in CoCa loss after pretraining (7): ")


def test_a_run_that_diverged_is_told_and_not_waited_for(tmp_path):
    """Seed 3 is in no comparison: fine-tunings have nothing to start from. What is there decides nothing alone."""
    arms = (*PAIR, "baseline_rms")
    is_lost = [row.arm == "baseline_coca" and row.seed == 3 for row in rows_of(arms, range(8))]
    rows = [row for row, lost in zip(rows_of(arms, range(8)), is_lost, strict=True) if not lost]
    rows += [
        replace(row, kind="diverged", metrics={})
        for row in rows_of(arms, range(8))
        if (row.seed, row.stage) in ((3, "pictograms"), (5, "health"))
        and row.arm == ("baseline_coca" if row.seed == 3 else "grr_coca")
    ]
    write_study(tmp_path, plan(arms), rows)
    made = read_plan(tmp_path / "plan.yaml", Plan)
    ledger = read_ledger(tmp_path, made)
    results = study_results(made, ledger)
    assert [(row.arm, row.seed) for row in ledger.diverged] == [("baseline_coca", 3)], "seed 5 was run again, and ended"
    assert (results.num_seeds, results.num_lost_seeds, results.num_rows) == (7, 1, 3 * 8 * 4 - 4)
    assert results.is_complete
    assert results.missing == ()
    assert results.lost == ("baseline_coca: all stages of seed 3",)
    assert "diverged, baseline_coca: all stages of seed 3" in results.notes
    found = answer(made, results)
    assert "So far" not in found.headline
    (told,) = (line for line in found.cautions if "diverged" in line)
    assert told.startswith("Of 8 seeds, 1 cannot be compared, because a run diverged (baseline_coca: all stages of")


def test_a_plan_that_searches_for_settings_has_no_more_to_say(tmp_path):
    found = said(
        tmp_path, plan([arm(name, grid={"optimizer.lr": [1, 2]}) for name in PAIR], 0, tuning={"seeds": [9]}), []
    )
    assert (found.headline, found.cautions) == ("This plan searches for settings only", ())


def test_another_baseline_leaves_the_arm_that_is_asked_about(tmp_path):
    arms = ("baseline_coca", "baseline_rms", "grr_coca")
    write_study(tmp_path, plan(arms), rows_of(arms, range(8)))
    made = compared_with(read_plan(tmp_path / "plan.yaml", Plan), "baseline_rms")
    found = answer(made, study_results(made, read_ledger(tmp_path, made)))
    assert found.question == "Is GRR-CoCa better than Baseline + RMSNorm?"


def test_one_endpoint_is_not_counted(tmp_path):
    single = plan(PAIR, endpoints={"primary": ["pretraining/coca_loss"]})
    found = said(tmp_path, single, rows_of(PAIR, range(8)))
    assert found.headline == "GRR-CoCa is better than Baseline CoCa in the one primary endpoint"


def test_an_endpoint_that_is_zero_is_not_said_to_be_unmeasured(tmp_path):
    rows = rows_of(PAIR, range(2), metrics={"test": {"R@1": 0.0}})
    found = said(tmp_path, plan(PAIR, 2, endpoints={"primary": ["pretraining/R@1"]}), rows)
    assert found.headline == "No answer: no seed allows a comparison of GRR-CoCa and Baseline CoCa"


def test_no_pair_is_no_answer(tmp_path):
    found = said(tmp_path, plan(PAIR), rows_of(PAIR[:1], range(3)))
    assert found.headline == "No answer yet: no seed allows a comparison of GRR-CoCa and Baseline CoCa"


@pytest.mark.parametrize(("factor", "is_near"), [(0.94, False), (0.96, True), (1.1, True)])
def test_contrastive_losses_that_are_no_better_than_guessing_are_told(tmp_path, factor, is_near):
    """Of 32 pairs, a model that guesses has a loss of ln 32 = 3.47; from 95 % of it on, a loss says nothing."""

    def lifted(row):
        if row.stage != "health":
            return row
        loss = factor * math.log(32) * (1.01 if row.seed % 2 else 1 / 1.01)  # the geometric mean over seeds is exact
        test = {**row.metrics["test"], "contrastive_loss": loss, "contrastive_batch_size": 32.0}
        return replace(row, metrics={**row.metrics, "test": test})

    found = said(tmp_path, plan(PAIR), map(lifted, rows_of(PAIR, range(8))))
    warned = [caution for caution in found.cautions if caution.startswith("After health, contrastive losses on test")]
    assert len(warned) == is_near
    if is_near:
        assert "guessing (3.47, the logarithm of the 32 pairs of a batch)" in warned[0]
        assert warned[0].endswith("Look at the loss with a refitted temperature, and at R@1.")
