"""What a study says in words, with the sign that a person expects."""

import math
import statistics
from dataclasses import replace

import pytest
from scipy import stats

from grr_coca.study.ledger import read_ledger
from grr_coca.study.plan import Plan, compared_with, read_plan
from grr_coca.study.report.answer import (
    agreement,
    answer,
    change_in_words,
    endpoints_in_words,
    interval_in_words,
    p_in_words,
    signed,
    verdict,
)
from grr_coca.study.report.numbers import Endpoint, EndpointResult, effect_of, study_results
from grr_coca.study.report.tables import factorial_tables
from synthetic_study import plan, rows_of, write_study

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
    return answer(made, study_results(made, read_ledger(folder)))


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


@pytest.mark.parametrize(
    ("percents", "words"),
    [
        ((-2.0, -3.0, -4.0), "0.5 to 5.5 % lower"),
        ((2.0, 3.0, 4.0), "0.5 to 5.5 % higher"),
        ((-2.0, 1.0, 1.0), "4.2 % lower to 4.4 % higher"),
        ((-2.0,), "one seed, so no interval"),
    ],
)
def test_intervals_begin_with_the_end_near_zero(percents, words):
    assert interval_in_words(effect(*percents)) == words


def test_numbers_are_told_with_a_direction_or_a_sign():
    assert [change_in_words(x) for x in (-2.44, 0.31, 0.04)] == ["2.4 % lower", "0.3 % higher", "the same"]
    assert [signed(x) for x in (-2.44, 0.31, -0.04, None)] == ["−2.4", "+0.3", "0.0", "–"]
    assert [p_in_words(p) for p in (0.0004, 2 / 256, None)] == ["< 0.001", "0.008", "–"]


def test_endpoints_are_told_by_phase():
    names = ["pretraining/perplexity", "pretraining/coca_loss", "finetuning/coca_loss"]
    assert endpoints_in_words([Endpoint(name) for name in names]) == (
        "perplexity and CoCa loss after pretraining, and CoCa loss after fine-tuning"
    )
    assert endpoints_in_words([Endpoint(name) for name in names[1:]]) == (
        "CoCa loss after pretraining and after fine-tuning"
    )


def test_a_gain_of_the_paper_is_excluded_doubtful_held_or_exceeded():
    found = effect(-2.0, -3.0, -4.0)  # 0.5 to 5.5 % lower; corrected for six endpoints, 9.1 % lower to 3.5 % higher
    assert [agreement(found, reported, 1) for reported in (-7.15, -5.18, -0.4)] == ["excluded", "within", "exceeded"]
    assert [agreement(found, reported, 6) for reported in (-9.2, -7.15, -5.18, 1.0, 3.6)] == [
        "excluded", "doubtful", "within", "doubtful", "exceeded",
    ]  # fmt: skip
    assert agreement(effect(-2.0), -7.15, 1) is None


def test_an_interval_is_corrected_as_scipy_has_it():
    values = [math.log1p(percent / 100) for percent in (-2.0, -3.0, -4.0)]
    ends = stats.t.interval(1 - 0.05 / 6, 2, statistics.fmean(values), stats.sem(values))
    assert effect(-2.0, -3.0, -4.0).interval_among(6) == pytest.approx([100 * math.expm1(end) for end in ends])


def test_an_unfinished_study_says_nothing_of_the_paper(tmp_path):
    found = said(tmp_path, plan(PAIR), rows_of(PAIR, range(3)))
    assert found.headline.startswith("So far, with 3 of 8 seeds")
    assert not any("paper" in sentence for sentence in found.sentences)


def test_a_gain_is_told_as_a_person_would(tmp_path):
    found = said(tmp_path, plan(PAIR), rows_of(PAIR, range(8)))
    assert found.question == "Is GRR-CoCa better than Baseline CoCa?"
    assert found.headline == "GRR-CoCa is better than Baseline CoCa in all 6 primary endpoints"
    assert found.sentences[0].startswith(
        "GRR-CoCa's CoCa loss after pretraining is 2.5 % lower than Baseline CoCa's (95 %"
    )
    assert found.sentences[0].endswith(" % lower).")
    assert any(
        "excluded at this scale, by an interval over seeds that is corrected for the 6 endpoints, for contrastive loss"
        in line
        for line in found.sentences
    )


def test_a_loss_is_told_whoever_wins(tmp_path):
    turned = plan(PAIR, baseline="grr_coca")
    found = said(tmp_path, turned, rows_of(PAIR, range(8)))
    assert found.question == "Is Baseline CoCa better than GRR-CoCa?"
    assert found.headline == "Baseline CoCa is worse than GRR-CoCa in all 6 primary endpoints"
    assert "Baseline CoCa's CoCa loss after pretraining is 2." in found.sentences[0]
    assert "% higher than GRR-CoCa's" in found.sentences[0]
    assert not any("paper" in line for line in found.sentences), "it says nothing of this"


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
    assert found.sentences[-1] == (
        "With 3 seeds, nothing is called better, worse or equal: of 6 endpoints, this takes 7 seeds, which detect a "
        "true change of two standard deviations in four studies of five."
    )


def test_seeds_that_decide_one_phase_are_not_called_too_few(tmp_path):
    """The study still runs: the last seed is pretrained, and not fine-tuned yet."""
    rows = [row for row in rows_of(PAIR, range(8)) if row.seed < 7 or row.stage == "pictograms"]
    found = said(tmp_path, plan(PAIR), rows)
    assert "7 of 8 seeds complete: GRR-CoCa is better than Baseline CoCa in " in found.headline
    assert not any("cannot decide" in sentence for sentence in found.sentences)


def test_whoever_looks_early_is_warned(tmp_path):
    warning = "Wait for all seeds: "
    early = said(tmp_path / "early", plan(PAIR, 12), rows_of(PAIR, range(8), deviation=0.001))
    assert "So far, with 8 of 12 seeds complete: GRR-CoCa is better" in early.headline
    assert any(sentence.startswith(warning) for sentence in early.sentences)
    whole = said(tmp_path / "whole", plan(PAIR), rows_of(PAIR, range(8), deviation=0.001))
    assert not any(sentence.startswith(warning) for sentence in whole.sentences)


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
    (left_out,) = (sentence for sentence in found.sentences if sentence.startswith("Not all"))
    assert left_out.startswith("Not all 8 seeds are in CoCa loss after pretraining (7): ")
    (paper,) = (sentence for sentence in found.sentences if "the paper" in sentence)
    assert "CoCa loss after pretraining" not in paper


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
    made, ledger = read_plan(tmp_path / "plan.yaml", Plan), read_ledger(tmp_path)
    results = study_results(made, ledger)
    assert [(row.arm, row.seed) for row in ledger.diverged] == [("baseline_coca", 3)], "seed 5 was run again, and ended"
    assert (results.num_seeds, results.num_lost_seeds, results.num_rows) == (7, 1, 3 * 8 * 4 - 4)
    assert results.is_complete
    assert results.missing == ()
    assert results.lost == ("baseline_coca: all stages of seed 3",)
    assert results.notes[0] == "diverged, baseline_coca: all stages of seed 3"
    found = answer(made, results)
    assert "So far" not in found.headline
    (told,) = (line for line in found.sentences if "diverged" in line)
    assert told.startswith("Of 8 seeds, 1 cannot be compared, because a run diverged (baseline_coca: all stages of")


def test_a_plan_that_searches_for_settings_has_no_more_to_say(tmp_path):
    found = said(tmp_path, plan(PAIR, 0, tuning={"seed": 9, "pretrain": {"optimizer.lr": [1, 2]}}), [])
    assert (found.headline, found.sentences) == ("This plan searches for settings only", ())


def test_another_baseline_leaves_the_arm_that_is_asked_about(tmp_path):
    arms = ("baseline_coca", "baseline_rms", "grr_coca")
    write_study(tmp_path, plan(arms), rows_of(arms, range(8)))
    made = compared_with(read_plan(tmp_path / "plan.yaml", Plan), "baseline_rms")
    found = answer(made, study_results(made, read_ledger(tmp_path)))
    assert found.question == "Is GRR-CoCa better than Baseline + RMSNorm?"


def test_one_endpoint_is_not_counted(tmp_path):
    single = plan(PAIR, endpoints={"primary": ["pretraining/coca_loss"]})
    found = said(tmp_path, single, rows_of(PAIR, range(8)))
    assert found.headline == "GRR-CoCa is better than Baseline CoCa in the one primary endpoint"


def test_an_endpoint_that_is_zero_is_not_said_to_be_unmeasured(tmp_path):
    rows = rows_of(PAIR, range(2), metrics={"test": {"R@1": 0.0}})
    found = said(tmp_path, plan(PAIR, 2, endpoints={"primary": ["pretraining/R@1"]}), rows)
    assert found.headline == "No answer: no seed allows a comparison of GRR-CoCa and Baseline CoCa"
    assert found.sentences == ("Nothing can be compared of R@1, text to image after pretraining.",)


def test_no_pair_is_no_answer(tmp_path):
    found = said(tmp_path, plan(PAIR), rows_of(PAIR[:1], range(3)))
    assert found.headline == "No answer yet: no seed allows a comparison of GRR-CoCa and Baseline CoCa"


def test_the_parts_are_told_with_the_seeds_that_they_rest_on(tmp_path):
    arms = plan()["arms"]

    def told(num_seeds):
        found = said(tmp_path / str(num_seeds), plan(arms), rows_of(arms, range(num_seeds)))
        return next(sentence for sentence in found.sentences if sentence.startswith("Main effects on"))

    assert "after pretraining, with 3 of 8 seeds: " in told(3)
    assert "after pretraining: " in told(8)


def test_the_seeds_of_an_effect_are_those_of_its_own_endpoint(tmp_path):
    arms = plan()["arms"]
    rows = [row for row in rows_of(arms, range(6)) if row.seed < 2 or row.stage == "pictograms"]
    write_study(tmp_path, plan(arms), rows)
    made = read_plan(tmp_path / "plan.yaml", Plan)
    results = study_results(made, read_ledger(tmp_path))
    (told,) = (line for line in answer(made, results).sentences if line.startswith("Main effects on"))
    assert "with 6 of 8 seeds" in told
    first, second = factorial_tables(made, results)
    assert first.note.startswith("In %, over the 6 seeds that have every combination")
    assert second.note.startswith("In %, over the 2 seeds that have every combination")


def test_a_part_is_said_to_act_when_all_seeds_are_there(tmp_path):
    arms = plan()["arms"]

    def told(num_seeds, deviation):
        rows = rows_of(arms, range(num_seeds), deviation=deviation)
        found = said(tmp_path / f"{num_seeds}-{deviation}", plan(arms), rows)
        return [sentence for sentence in found.sentences if "t test at" in sentence]

    (clear,) = told(8, 0.001)
    test = (
        "(t test at the 5 % level, corrected for the 7 main effects and interactions on an endpoint, but not for "
        "several endpoints)"
    )
    assert clear.startswith(f"Significant main effects {test}: ")
    assert "GEGLU lowers contrastive loss by 0.6 %, " in clear
    assert "RMSNorm raises contrastive loss by 0.2 %, " in clear
    assert "; RoPE lowers contrastive loss by 2.2 %, " in clear
    assert told(8, 1.0) == [f"Significant main effects {test}: none."]
    assert told(7, 0.001) == []


def test_parts_are_not_said_to_do_nothing_where_a_corner_diverged(tmp_path):
    arms = plan()["arms"]
    lost = ("baseline_geglu", 3)

    def told(*stages):
        rows = [
            replace(row, kind="diverged", metrics={}) if (row.arm, row.seed) == lost and row.stage in stages else row
            for row in rows_of(arms, range(8), deviation=0.001)
        ]
        folder = tmp_path / "-".join(stages)
        return [line for line in said(folder, plan(arms), rows).sentences if line.startswith("Significant")]

    (all_lost,) = told("pictograms", "health", "clipart", "glyphs")
    assert all_lost.startswith("Significant main effects on contrastive loss, perplexity and CoCa loss after")
    assert all_lost.endswith("are unknown: not all 8 seeds have a value for every combination of the parts.")
    (half_lost,) = told("health")
    assert "RoPE lowers contrastive loss by 2.2 %, " in half_lost
    assert "main effects on contrastive loss, perplexity and CoCa loss after fine-tuning are unknown" in half_lost


@pytest.mark.parametrize(("change", "is_small"), [(-1.6, True), (-2.1, False), (1.6, True), (2.1, False)])
def test_a_change_within_half_of_the_papers_gain_is_told(tmp_path, change, is_small):
    """Perplexity after pretraining: the paper has −3.71 %, half of it is 1.855 %. Seeds are 0.1 % around `change`."""

    def shifted(row):
        around = 1 + change / 100 + (0.001 if row.seed % 2 else -0.001)
        perplexity = 4.0 * (around if row.arm == "grr_coca" else 1.0)
        return replace(row, metrics={**row.metrics, "test": {**row.metrics["test"], "perplexity": perplexity}})

    only = plan(PAIR, endpoints={"primary": ["pretraining/perplexity"]})
    (paper,) = (s for s in said(tmp_path, only, map(shifted, rows_of(PAIR, range(8)))).sentences if "paper" in s)
    told = "the 95 % interval lies within half of the paper's gain, up and down, for perplexity after pretraining."
    assert paper.endswith(told) is is_small


@pytest.mark.parametrize(("factor", "is_near"), [(0.94, False), (0.96, True), (1.1, True)])
def test_contrastive_losses_that_are_no_better_than_guessing_exclude_nothing(tmp_path, factor, is_near):
    """Of 32 pairs, a model that guesses has a loss of ln 32 = 3.47; from 95 % of it on, a loss says nothing."""

    def lifted(row):
        if row.stage != "health":
            return row
        loss = factor * math.log(32) * (1.01 if row.seed % 2 else 1 / 1.01)  # the geometric mean over seeds is exact
        test = {**row.metrics["test"], "contrastive_loss": loss, "contrastive_batch_size": 32.0}
        return replace(row, metrics={**row.metrics, "test": test})

    found = said(tmp_path, plan(PAIR), map(lifted, rows_of(PAIR, range(8))))
    warned = [
        sentence for sentence in found.sentences if sentence.startswith("After health, contrastive losses on test")
    ]
    assert len(warned) == is_near
    if is_near:
        assert "guessing (3.47, the logarithm of the 32 pairs of a batch)" in warned[0]
        assert warned[0].endswith("Look at the loss with a refitted temperature, and at R@1.")
    (paper,) = (sentence for sentence in found.sentences if "the paper" in sentence)
    told = (
        "contrastive loss and CoCa loss after pretraining and after",
        "contrastive loss and CoCa loss after pretraining, ",
    )
    assert told[is_near] in paper.partition(";")[0]
    assert told[not is_near] not in paper
