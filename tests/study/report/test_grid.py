"""Loss at each point of a grid, and best against best: on rows whose answer was worked out by hand."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.study.ledger import Ledger
from grr_coca.study.plan import Arm, Endpoints, Plan, Settings, Tuning
from grr_coca.study.report.grid import (
    GridCurve,
    best_against_best,
    grid_as_plain,
    grid_figure,
    grid_results,
    grid_tables,
    with_choice_drawn,
)
from grr_coca.study.report.numbers import study_results
from grr_coca.study.report.page import write_study_report
from grr_coca.study.report.verdict import Answer, answer, verdict
from grr_coca.study.rows import LedgerRow
from grr_coca.study.statistics import as_percent
from synthetic_study import write_study

RATES = (0.003, 0.006, 0.012)
E = math.e


def plan(seeds: int) -> Plan:
    return Plan(
        arms=tuple(Arm(name=name, grid={"optimizer.lr": RATES}) for name in ("grr_coca", "baseline_coca")),
        baseline="baseline_coca",
        seeds=tuple(range(seeds)),
        pretrain="pictograms.yaml",
        endpoints=Endpoints(primary=("pretraining/coca_loss",)),
        showcase="test",
    )


def row(arm: str, point: Settings, seed: int, val: float, test: float) -> LedgerRow:
    return LedgerRow(
        arm=arm,
        seed=seed,
        stage="pictograms",
        recipe_digest=f"{point}",
        data_digest="d" * 16,
        commit="c",
        machine="m",
        precision="fp32",
        settings=dict(point),
        steps=6,
        seconds=1.0,
        parameters=2,
        image_encoder_parameters=1,
        flops_per_pair=1,
        metrics={"val": {"coca_loss": val}, "test": {"coca_loss": test}},
    )


Logs = Mapping[str, list[list[float]]]
"""Logs of losses by arm, rate and seed."""


def rows_of(val: Logs, test: Logs) -> list[LedgerRow]:
    return [
        row(arm, {"optimizer.lr": rate}, seed, E**log_val, E ** test[arm][index][seed])
        for arm, by_rate in val.items()
        for index, rate in enumerate(RATES)
        for seed, log_val in enumerate(by_rate[index])
    ]


def ledger(val: Logs, test: Logs) -> Ledger:
    return Ledger((), tuple(rows_of(val, test)))


def points(*names: str) -> tuple[Settings, ...]:
    return tuple({"key": name} for name in names)


def curve(title: str, val: object, test: object) -> GridCurve:
    val, test = np.exp(val), np.exp(test)
    return GridCurve(
        arm=title, title=title, points=points(*"abc"[: len(val)]), rows=({},) * len(val), val=val, test=test
    )


VAL = {"grr_coca": [[0.3, 0.4], [0.1, 0.2], [0.2, 0.3]], "baseline_coca": [[0.5, 0.5], [0.3, 0.3], [0.1, 0.1]]}
TEST = {
    "grr_coca": [[0.40, 0.50], [0.30, 0.32], [0.00, 0.00]],  # the best on test is not the one that is chosen
    "baseline_coca": [[0.60, 0.66], [0.40, 0.42], [0.35, 0.38]],
}


def at(found, rate: float):
    (at_point,) = (each for each in found.at_points if each.point == {"optimizer.lr": rate})
    return at_point


def test_each_arm_is_compared_at_the_point_that_is_best_on_val():
    (found,) = grid_results(plan(2), ledger(VAL, TEST))
    assert (found.model.title, found.baseline.title) == ("GRR-CoCa", "Baseline CoCa")
    assert (found.model.best_title, found.baseline.best_title) == ("GRR-CoCa at 0.006", "Baseline CoCa at 0.012")
    assert (found.model.is_best_at_edge, found.baseline.is_best_at_edge) == (False, True)
    effect = found.best.effect
    assert effect.changes == pytest.approx(as_percent(np.array([0.30 - 0.35, 0.32 - 0.38])))
    assert effect.change == pytest.approx(as_percent(-0.055))
    # Two seeds, the same choice in each draw: one draw in four has the first seed twice, one the second.
    assert (found.best.low, found.best.high) == pytest.approx((as_percent(-0.06), as_percent(-0.05)))
    assert found.best.kept == 1.0


def test_the_difference_at_each_point_and_its_growth_with_the_rate():
    (found,) = grid_results(plan(2), ledger(VAL, TEST))
    assert [at_point.point["optimizer.lr"] for at_point in found.at_points] == list(RATES)
    assert at(found, 0.003).effect.change == pytest.approx(as_percent((-0.20 - 0.16) / 2))
    # By doublings, the seeds' differences are -0.20, -0.10, -0.35 and -0.16, -0.10, -0.38; a line through three evenly
    # spaced points has half of last minus first as its slope.
    assert found.interaction is not None
    assert found.interaction.changes == pytest.approx(as_percent(np.array([-0.15 / 2, -0.22 / 2])))


def test_a_draw_of_seeds_chooses_its_own_point():
    """The first seed is for the first rate, the second for the second by a little less, so both together are for the
    first. Only draws of the second seed alone choose another rate, where the endpoint is much better."""
    model = curve("A", [[0.0, 0.4], [0.5, 0.1]], [[0.2, 0.2], [9.0, -1.0]])
    baseline = curve("B", [[0.0, 0.0]], [[0.0, 0.0]])
    found = best_against_best(model, baseline, (0, 1))
    assert model.best == 0
    assert found.effect.change == pytest.approx(as_percent(0.2))
    assert (found.low, found.high) == pytest.approx((as_percent(-1.0), as_percent(0.2)))
    assert found.kept == pytest.approx(3 / 4, abs=0.03)


def test_a_point_at_which_a_run_diverged_is_never_the_best():
    torn = Ledger(
        (),
        tuple(
            replace(r, kind="diverged", metrics={})
            if (r.arm, r.seed, r.settings["optimizer.lr"]) == ("grr_coca", 1, 0.006)
            else r
            for r in rows_of(VAL, TEST)
        ),
    )
    (found,) = grid_results(plan(2), torn)
    assert found.model.best_title == "GRR-CoCa at 0.012"
    assert [at_point.point["optimizer.lr"] for at_point in found.at_points] == [0.003, 0.012]
    assert [line[3] for line in grid_tables(found)[1].rows] == ["1.4191", "diverged", "1.2840*"]


def test_an_arm_that_diverged_at_every_point_has_no_best():
    rows = [replace(r, kind="diverged", metrics={}) if r.arm == "grr_coca" else r for r in rows_of(VAL, TEST)]
    assert grid_results(plan(2), Ledger((), tuple(rows))) == []


def test_seeds_that_lack_a_point_are_left_out():
    rows = rows_of(VAL, TEST)
    (gone,) = (r for r in rows if (r.arm, r.seed, r.settings["optimizer.lr"]) == ("baseline_coca", 1, 0.003))
    partial = Ledger((), tuple(r for r in rows if r is not gone))
    (found,) = grid_results(plan(2), partial)
    assert found.seeds == (0,)
    assert found.best.effect.change == pytest.approx(as_percent(-0.05))
    assert (found.best.low, found.best.effect.low, found.best.kept) == (None, None, None)
    assert "draws chose these" not in grid_tables(found)[0].note, "nothing was drawn"
    assert grid_results(plan(2), Ledger(())) == []
    without = Ledger((), tuple(r for r in rows if r.settings["optimizer.lr"] != 0.003))
    assert grid_results(plan(2), without) == [], "no seed has the first rate"


def test_an_arm_without_a_grid_is_compared_as_it_is():
    arms = (Arm(name="grr_coca", grid={"optimizer.lr": RATES}), Arm(name="baseline_coca"), Arm(name="coca"))
    asked = replace(plan(2), arms=arms)
    rows = [r for r in rows_of(VAL, TEST) if r.arm == "grr_coca"]
    own = [
        row(name, {}, seed, E**0.1, E ** (0.35 + 0.03 * seed)) for name in ("baseline_coca", "coca") for seed in (0, 1)
    ]
    (found,) = grid_results(asked, Ledger(tuple(own), tuple(rows)))
    assert found.best.effect.change == pytest.approx(as_percent(-0.055))
    assert (found.at_points, found.interaction) == ((), None)
    assert grid_tables(found)[0].rows[0][0] == "best against best: GRR-CoCa at 0.006 and Baseline CoCa"
    assert ">Baseline CoCa" in grid_figure(found)
    asked_of_coca = replace(asked, arms=(arms[2], arms[1]))
    results = with_choice_drawn(asked_of_coca, Ledger(tuple(own)), study_results(asked_of_coca, Ledger(tuple(own))))
    assert results == study_results(asked_of_coca, Ledger(tuple(own))), "nothing was chosen"


def test_a_grid_of_several_keys_is_shown_point_by_point():
    grid = [{"optimizer.lr": rate, "optimizer.weight_decay": decay} for rate in (0.1, 0.2) for decay in (1, 2)]
    keys = {"optimizer.lr": (0.1, 0.2), "optimizer.weight_decay": (1, 2)}
    asked = replace(plan(1), arms=tuple(Arm(name=name, grid=keys) for name in ("grr_coca", "baseline_coca")))
    rows = [
        row(arm, point, 0, 1.0 + (index == best), 2.0)
        for arm, best in (("grr_coca", 2), ("baseline_coca", 0))
        for index, point in enumerate(grid)
    ]
    (found,) = grid_results(asked, Ledger((), tuple(rows)))
    assert found.model.best_title == "GRR-CoCa at lr 0.1, weight_decay 1"
    assert found.baseline.best_title == "Baseline CoCa at lr 0.1, weight_decay 2"
    assert [line[0] for line in grid_tables(found)[1].rows] == [
        f"lr {rate}, weight_decay {decay}" for rate in (0.1, 0.2) for decay in (1, 2)
    ]
    assert (len(found.at_points), found.interaction) == (4, None)
    assert "lr 0.2, weight_decay 2" in grid_figure(found)
    json.dumps(grid_as_plain(found), allow_nan=False)


def test_trials_with_seeds_of_their_own_are_compared_nowhere():
    assert grid_results(replace(plan(2), tuning=Tuning(seeds=(9,))), ledger(VAL, TEST)) == []


def test_an_endpoint_of_fine_tuning_has_no_curve_and_no_verdict():
    """Fine-tunings start from the best point alone."""
    asked, rows = eight_seeds([0.2, 0.21, 0.19, 0.2, 0.22, 0.2, 0.18, 0.2])
    tuned = tuple(replace(each, stage="health") for each in rows.rows)
    asked = replace(
        asked,
        finetune=("health.yaml",),
        endpoints=Endpoints(primary=("finetuning/coca_loss", "pretraining/coca_loss")),
    )
    both = replace(rows, rows=(*rows.rows, *tuned))
    assert [found.endpoint.name for found in grid_results(asked, both)] == ["pretraining/coca_loss"]
    without = study_results(asked, both).arms[0].endpoints
    assert [verdict(result) for result in without] == ["better", "better"]
    drawn = with_choice_drawn(asked, both, study_results(asked, both)).arms[0].endpoints
    assert [verdict(result) for result in drawn] == ["open", "better"]
    assert [result.with_choice is None for result in drawn] == [True, False]
    assert grid_results(replace(asked, endpoints=Endpoints(primary=("finetuning/coca_loss",))), both) == []


def test_a_rate_whose_recall_is_zero_is_not_chosen_in_a_draw():
    """It has no logarithm. On `val`, draws of the second seed alone are for it."""
    found = grid_results(*with_recalls([[0.1, 0.1], [0.2, 0.2], [0.3, 0.0]]))[0]
    assert found.model.best_title == "GRR-CoCa at 0.006"
    assert found.best.low is not None
    assert math.isfinite(found.best.low)
    assert [at_point.point["optimizer.lr"] for at_point in found.at_points] == [0.003, 0.006]
    assert grid_tables(found)[1].rows[2][3:] == ("diverged or 0", "–")
    assert grid_results(*with_recalls([[0.0, 0.1]] * 3)) == [], "no rate can be compared"


def with_recalls(of_model: list[list[float]]) -> tuple[Plan, Ledger]:
    """A plan of R@1 on the split `test_style`, and its rows: of the model by rate and seed, 0.1 of the baseline."""
    val = {"grr_coca": [[0.3, 0.3], [0.1, 0.2], [0.4, 0.1]], "baseline_coca": VAL["baseline_coca"]}
    asked = replace(plan(2), endpoints=Endpoints(primary=("pretraining/R@1",), split="test_style"))

    def recall(of: LedgerRow) -> float:
        return of_model[RATES.index(of.settings["optimizer.lr"])][of.seed] if of.arm == "grr_coca" else 0.1

    rows = [replace(r, metrics={"val": r.metrics["val"], "test_style": {"R@1": recall(r)}}) for r in rows_of(val, TEST)]
    return asked, Ledger((), tuple(rows))


def test_the_split_is_named():
    found = grid_results(*with_recalls([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]))[0]
    answer, losses = grid_tables(found)
    assert "in R@1, text to image on the test_style split" in answer.note
    assert losses.heads[1:3] == ("Baseline CoCa, val", "Baseline CoCa, test_style")
    assert "R@1, text to image on test_style" in grid_figure(found)


def test_a_plan_without_grids_has_no_curves():
    arms = (Arm(name="grr_coca"), Arm(name="baseline_coca"))
    rows = tuple(row(name, {}, 0, 1.0, 1.0) for name in ("grr_coca", "baseline_coca"))
    assert grid_results(replace(plan(1), arms=arms), Ledger(rows)) == []


def test_the_tables_say_what_was_chosen_and_what_may_lie_beyond():
    (found,) = grid_results(plan(2), ledger(VAL, TEST))
    answer, losses = grid_tables(found)
    assert answer.rows[0][0] == "best against best: GRR-CoCa at 0.006 and Baseline CoCa at 0.012"
    assert answer.rows[0][1].startswith("−5.4")
    assert answer.rows[0][2:] == ("–", "−5.8 to −4.9"), "rows without values of images"
    assert "The best point of Baseline CoCa is at the edge" in answer.note
    assert losses.rows[1] == ("0.006", "1.3499", "1.5068", "1.1618*", "1.3634")


def test_intervals_over_both_draw_seeds_and_images_at_each_point():
    """Each of eight images has the loss of its split, so that seeds alone differ: those of two are drawn."""

    def with_images(row: LedgerRow) -> LedgerRow:
        loss = row.metrics["test"]["coca_loss"]
        return replace(
            row,
            metrics={**row.metrics, "test": {"captioning_loss": loss}},
            values={"test": {"nll": 8 * [loss], "tokens": 8 * [1]}},
        )

    asked = replace(plan(2), endpoints=Endpoints(primary=("pretraining/captioning_loss",)))
    (found,) = grid_results(asked, Ledger((), tuple(map(with_images, rows_of(VAL, TEST)))))
    assert found.best_over_both == pytest.approx((as_percent(-0.06), as_percent(-0.05))), "0.006 over 0.012"
    assert at(found, 0.012).over_both == pytest.approx((as_percent(-0.38), as_percent(-0.35)))
    assert grid_tables(found)[0].rows[0][2] == "−5.8 to −4.9"


def test_the_figure_shows_both_arms_and_every_point():
    (found,) = grid_results(plan(2), ledger(VAL, TEST))
    svg = grid_figure(found)
    assert svg == grid_figure(found)
    for text in ("GRR-CoCa", "Baseline CoCa", "0.003", "0.012", "CoCa loss on val", "CoCa loss on test", "best"):
        assert f">{text}" in svg


def test_a_report_shows_each_arm_at_its_best_point(tmp_path):
    rows = rows_of(VAL, TEST)
    with_recall = (replace(r, metrics={**r.metrics, "test": {**r.metrics["test"], "R@1": 0.25}}) for r in rows)
    endpoints = Endpoints(primary=("pretraining/coca_loss",), secondary=("pretraining/R@1",))
    write_study(tmp_path, to_dict(replace(plan(2), endpoints=endpoints)), with_recall)
    write_study_report(tmp_path, tmp_path)
    page, tables = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for text in (page, tables):
        assert "best against best: GRR-CoCa at 0.006 and Baseline CoCa at 0.012" in text
        assert "With the choice drawn: over seeds, each draw of which chooses the settings" in text
        assert "Secondary endpoints" in text
    assert "<h2>GRR-CoCa at its best settings</h2>" in page
    assert "## Settings" not in tables, "its losses by settings are shown above"
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [each["model"]["best"] for each in results["grids"]] == [{"optimizer.lr": 0.006}]
    assert results["arms"][0]["endpoints"][0]["effect"]["change"] == pytest.approx(as_percent(-0.055)), "at the best"


def eight_seeds(best_on_test: list[float]) -> tuple[Plan, Ledger]:
    """The model's best rate is 0.006 and the baseline's 0.012; there the baseline's log loss on `test` is 0.3."""
    flat = {rate: [level] * 8 for rate, level in zip(RATES, (0.3, 0.1, 0.2), strict=True)}
    val = {"grr_coca": list(flat.values()), "baseline_coca": [[0.5] * 8, [0.3] * 8, [0.1] * 8]}
    test = {"grr_coca": [[0.5] * 8, best_on_test, [0.4] * 8], "baseline_coca": [[0.6] * 8, [0.4] * 8, [0.3] * 8]}
    tried, best = rows_of(val, test), {"grr_coca": 0.006, "baseline_coca": 0.012}
    return plan(8), Ledger(tuple(r for r in tried if r.settings["optimizer.lr"] == best[r.arm]), tuple(tried))


def answer_of(asked: Plan, rows: Ledger) -> Answer:
    return answer(asked, with_choice_drawn(asked, rows, study_results(asked, rows)))


@pytest.mark.parametrize(
    ("on_test", "headline"),
    [
        (
            [0.2, 0.21, 0.19, 0.2, 0.22, 0.2, 0.18, 0.2],
            "GRR-CoCa is better than Baseline CoCa",
        ),
        (
            [0.4, 0.41, 0.39, 0.4, 0.42, 0.4, 0.38, 0.4],
            "GRR-CoCa is worse than Baseline CoCa",
        ),
        (
            [0.2, 0.41, 0.29, 0.3, 0.32, 0.3, 0.28, 0.31],
            "No difference between GRR-CoCa and Baseline CoCa is shown",
        ),
        (
            [0.3, 0.31, 0.29, 0.3, 0.302, 0.3, 0.298, 0.3],
            "GRR-CoCa and Baseline CoCa are equal within ±2 %",
        ),
    ],
)
def test_the_answer_compares_best_with_best(on_test, headline):
    asked, rows = eight_seeds(on_test)
    found = answer_of(asked, rows)
    assert (found.question, found.headline) == (
        "Is GRR-CoCa better than Baseline CoCa, each at its best settings?",
        f"{headline} in the one primary endpoint, each at its best settings",
    )


def test_a_draw_that_chooses_otherwise_decides_nothing_alone():
    """As chosen, all seeds are better. Where a draw takes the seeds that are for another rate, it is worse."""
    asked, rows = eight_seeds([0.2, 0.21, 0.19, 0.2, 0.22, 0.2, 0.18, 0.2])
    assert verdict(with_choice_drawn(asked, rows, study_results(asked, rows)).arms[0].endpoints[0]) == "better"
    (result,) = study_results(asked, rows).arms[0].endpoints
    assert verdict(replace(result, with_choice=(-9.0, 0.1))) == "open"
    assert verdict(replace(result, with_choice=(-9.0, -0.1))) == "better"


def test_an_answer_of_few_seeds_decides_nothing():
    asked, rows = eight_seeds([0.2] * 7 + [0.21])

    def of(count: int) -> Ledger:
        return Ledger(tuple(r for r in rows.rows if r.seed < count), tuple(r for r in rows.tried if r.seed < count))

    assert "not enough seeds to decide whether GRR-CoCa is better" in answer_of(asked, of(2)).headline
    found = answer_of(asked, of(6))
    assert found.headline.startswith("So far, with 6 of 8 seeds complete: GRR-CoCa is better")
    assert found.cautions[-1].startswith("Wait for all seeds")
