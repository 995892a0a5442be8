"""What a study says in words, with the sign that a person expects."""

import pytest
from synthetic_study import PARTS_OF_PRESET, arm, plan, rows_of, write_study

from grr_coca.common.dict_to_dataclass import differences
from grr_coca.model.presets import get_preset
from grr_coca_study.ledger import read_ledger
from grr_coca_study.plan import Plan, read_plan, with_baseline
from grr_coca_study.report.answer import answer, arm_titles
from grr_coca_study.report.numbers import study_results

PAIR = ("baseline_coca", "grr_coca")


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """Intervals over images are in no sentence, and take half of the time."""
    monkeypatch.setattr("grr_coca_study.report.endpoints.RESAMPLES", 20)


def answer_for(folder, content, rows, over=None):
    write_study(folder, content, rows)
    chosen_plan = with_baseline(read_plan(folder / "plan.yaml", Plan), over)
    return answer(chosen_plan, study_results(chosen_plan, read_ledger(folder, chosen_plan)))


def test_titles_name_the_parts_of_a_presets_image_encoder(tmp_path):
    write_study(tmp_path, plan(PARTS_OF_PRESET), [])
    titles = arm_titles(read_plan(tmp_path / "plan.yaml", Plan))
    keys = {"RMSNorm": "norm", "GEGLU": "feed_forward", "RoPE": "position"}
    for name, parts in PARTS_OF_PRESET.items():
        changed = {
            key.removeprefix("image_encoder.transformer.")
            for key, *_ in differences(get_preset(name, "tiny"), get_preset("baseline_coca", "tiny"))
        }
        assert changed - {"hidden_dim"} == {keys[part] for part in parts}, name
        assert titles[name] == {(): "Baseline CoCa", tuple(keys): "GRR-CoCa"}.get(
            parts, " + ".join(["Baseline", *parts])
        )


@pytest.mark.parametrize(
    ("changes", "over", "question", "headline"),
    [
        ({}, None, "Is GRR-CoCa better than Baseline CoCa?", "Better in 6 of 6 primary endpoints"),
        ({}, "grr_coca", "Is Baseline CoCa better than GRR-CoCa?", "Worse in 6 of 6 primary endpoints"),
        (
            {"endpoints": {"primary": ["pretraining/coca_loss"]}},
            None,
            "Is GRR-CoCa better than Baseline CoCa?",
            "Better in 1 of 1 primary endpoint",
        ),
        (
            {"arms": ["baseline_coca", "baseline_rms", "grr_coca"]},
            "baseline_rms",
            "Is GRR-CoCa better than Baseline + RMSNorm?",
            "Better in 6 of 6 primary endpoints",
        ),
    ],
)
def test_gains_and_losses_are_stated_in_plain_words(tmp_path, changes, over, question, headline):
    found = answer_for(tmp_path, plan(PAIR) | changes, rows_of((*PAIR, "baseline_rms"), range(8)), over)
    assert found == (question, headline, [])


def test_few_seeds_cannot_decide(tmp_path):
    found = answer_for(tmp_path, plan(PAIR), rows_of(PAIR, range(3), deviation=0.02))
    assert found.headline == "So far, with 3 of 8 seeds complete: undecided in 6 of 6 primary endpoints"
    (warning,) = found.cautions
    assert warning.endswith(
        "no endpoint is called better, worse or equal: with 6 primary endpoints, this requires at least 7 seeds."
    )


def test_seeds_that_decide_one_phase_are_not_called_too_few(tmp_path):
    """The study still runs: the last seed is pretrained, and not fine-tuned yet."""
    rows = [row for row in rows_of(PAIR, range(8)) if row.seed < 7 or row.stage == "pictograms"]
    found = answer_for(tmp_path, plan(PAIR), rows)
    assert "7 of 8 seeds complete: better in " in found.headline
    assert not any("nothing is called" in caution for caution in found.cautions)


@pytest.mark.parametrize("planned", [8, 12])
def test_early_report_warns(tmp_path, planned):
    found = answer_for(tmp_path, plan(PAIR, planned), rows_of(PAIR, range(8), deviation=0.001))
    is_early = planned > 8
    assert found.headline.startswith("So far, with 8 of 12 seeds complete: better") is is_early
    assert [caution.partition(":")[0] for caution in found.cautions] == ["Wait for all seeds"] * is_early


def test_plan_that_only_searches_for_settings_is_reported(tmp_path):
    arms = [arm(name, grid={"optimizer.lr": [1, 2]}) for name in PAIR]
    found = answer_for(tmp_path, plan(arms, 0, tuning={"seeds": [9]}), [])
    assert found[1:] == ("This plan searches for settings only", [])


@pytest.mark.parametrize(
    "rows", [rows_of(PAIR[:1], range(3)), rows_of(PAIR, range(3), metrics={"test": {"R@1": 0.0}})], ids=["pair", "zero"]
)
def test_study_without_a_pair_has_no_answer(tmp_path, rows):
    found = answer_for(tmp_path, plan(PAIR, 3, endpoints={"primary": ["pretraining/R@1"]}), rows)
    assert found.headline.lower().endswith("nothing to compare in 1 of 1 primary endpoint")
