"""Loss at each point of a grid, and best against best: on rows whose answer was worked out by hand."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import plain_row, write_study

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca_study.ledger import Ledger
from grr_coca_study.plan import Arm, Endpoints, Plan, Settings, Tuning
from grr_coca_study.report.answer import answer, arm_titles
from grr_coca_study.report.figures import grid_curves
from grr_coca_study.report.grid import GridCurve, best_against_best, grid_results
from grr_coca_study.report.numbers import study_results
from grr_coca_study.report.page import write_study_report
from grr_coca_study.rows import LedgerRow
from grr_coca_study.statistics import as_percent

RATES = (0.003, 0.006, 0.012)
PAIR = ("grr_coca", "baseline_coca")


def plan(seeds: int, **changes: object) -> Plan:
    asked = Plan(
        arms=tuple(Arm(name=name, grid={"optimizer.lr": RATES}) for name in PAIR),
        baseline="baseline_coca",
        seeds=tuple(range(seeds)),
        pretrain="pictograms.yaml",
        endpoints=Endpoints(primary=("pretraining/coca_loss",)),
        showcase="test",
    )
    return replace(asked, **changes)


def row(arm: str, point: Settings, seed: int, val: float, test: float) -> LedgerRow:
    """A row with these logarithms of losses."""
    metrics = {"val": {"coca_loss": math.exp(val)}, "test": {"coca_loss": math.exp(test)}}
    asked = {"stage": "pictograms", "recipe_digest": f"{point}", "data_digest": "d" * 16, "settings": dict(point)}
    return plain_row(arm=arm, seed=seed, metrics=metrics, **asked)


Logs = Mapping[str, list[list[float]]]
"""Logs of losses by arm, rate and seed."""


def rows_of(val: Logs, test: Logs) -> list[LedgerRow]:
    return [
        row(arm, {"optimizer.lr": rate}, seed, log_val, test[arm][index][seed])
        for arm, by_rate in val.items()
        for index, rate in enumerate(RATES)
        for seed, log_val in enumerate(by_rate[index])
    ]


VAL = {"grr_coca": [[0.3, 0.4], [0.1, 0.2], [0.2, 0.3]], "baseline_coca": [[0.5, 0.5], [0.3, 0.3], [0.1, 0.1]]}
TEST = {
    "grr_coca": [[0.40, 0.50], [0.30, 0.32], [0.00, 0.00]],  # the best on test is not the one that is chosen
    "baseline_coca": [[0.60, 0.66], [0.40, 0.42], [0.35, 0.38]],
}
ROWS = rows_of(VAL, TEST)


def tried(rows) -> Ledger:
    return Ledger((), tuple(rows))


def rates(found) -> list[float]:
    return [at.point["optimizer.lr"] for at in found.at_points]


def test_each_arm_is_compared_at_the_point_that_is_best_on_val():
    (found,) = grid_results(plan(2), tried(ROWS))
    assert (found.model.arm, found.baseline.arm) == PAIR
    assert (found.model.best, found.baseline.best) == ({"optimizer.lr": 0.006}, {"optimizer.lr": 0.012})
    effect = found.best.effect
    assert effect.changes == pytest.approx(as_percent(np.array([0.30 - 0.35, 0.32 - 0.38])))
    assert effect.change == pytest.approx(as_percent(-0.055))
    # Two seeds, the same choice in each draw: one draw in four has the first seed twice, one the second.
    assert found.best.interval == pytest.approx((as_percent(-0.06), as_percent(-0.05)))
    assert found.best.kept == 1.0
    assert json.loads(json.dumps(to_dict(found), allow_nan=False))["model"]["best"] == {"optimizer.lr": 0.006}


def test_the_difference_at_each_point():
    (found,) = grid_results(plan(2), tried(ROWS))
    assert rates(found) == list(RATES)
    assert found.at_points[0].effect.change == pytest.approx(as_percent((-0.20 - 0.16) / 2))


def curve(val, test) -> GridCurve:
    points = tuple({"key": name} for name in "abc"[: len(val)])
    val, test = (tuple(map(tuple, np.exp(table).tolist())) for table in (val, test))
    return GridCurve(arm="", points=points, best=points[0], val=val, test=test)


def test_a_draw_of_seeds_chooses_its_own_point():
    """The first seed is for the first rate, the second for the second by a little less, so both together are for the
    first. Only draws of the second seed alone choose another rate, where the endpoint is much better."""
    model = curve([[0.0, 0.4], [0.5, 0.1]], [[0.2, 0.2], [9.0, -1.0]])
    found = best_against_best(model, curve([[0.0, 0.0]], [[0.0, 0.0]]), (0, 1))
    assert found.effect.change == pytest.approx(as_percent(0.2))
    assert found.interval == pytest.approx((as_percent(-1.0), as_percent(0.2)))
    assert found.kept == pytest.approx(3 / 4, abs=0.03)


def test_a_point_at_which_a_run_diverged_is_never_the_best():
    def torn(each):
        return replace(each, kind="diverged", metrics={})

    one = [torn(r) if (r.arm, r.seed, r.settings["optimizer.lr"]) == ("grr_coca", 1, 0.006) else r for r in ROWS]
    (found,) = grid_results(plan(2), tried(one))
    assert found.model.best == {"optimizer.lr": 0.012}
    assert rates(found) == [0.003, 0.012]
    assert [None in losses for losses in found.model.val] == [False, True, False]
    assert grid_results(plan(2), tried(torn(r) if r.arm == "grr_coca" else r for r in ROWS)) == (), "none is the best"


def test_seeds_that_lack_a_point_are_left_out():
    partial = [r for r in ROWS if (r.arm, r.seed, r.settings["optimizer.lr"]) != ("baseline_coca", 1, 0.003)]
    (found,) = grid_results(plan(2), tried(partial))
    assert found.seeds == (0,)
    assert found.best.effect.change == pytest.approx(as_percent(-0.05))
    assert (found.best.interval, found.best.effect.low, found.best.kept) == (None, None, None)
    for rows in ([], [r for r in ROWS if r.settings["optimizer.lr"] != 0.003]):
        assert grid_results(plan(2), tried(rows)) == (), "no seed has all rates"


def test_an_arm_without_a_grid_is_compared_as_it_is():
    arms = (Arm(name="grr_coca", grid={"optimizer.lr": RATES}), Arm(name="baseline_coca"), Arm(name="coca"))
    own = tuple(row(name, {}, seed, 0.1, 0.35 + 0.03 * seed) for name in ("baseline_coca", "coca") for seed in (0, 1))
    ledger = Ledger(own, tuple(r for r in ROWS if r.arm == "grr_coca"))
    asked = plan(2, arms=arms)
    (found,) = grid_results(asked, ledger)
    assert found.best.effect.change == pytest.approx(as_percent(-0.055))
    assert found.at_points == ()
    assert ">Baseline CoCa" in grid_curves(found, arm_titles(asked))
    without = study_results(plan(2, arms=arms[:0:-1]), Ledger(own))
    assert (without.grids, without.arms[0].endpoints[0].with_choice) == ((), None), "nothing was chosen"


def test_a_grid_of_several_keys_is_shown_point_by_point():
    keys = {"optimizer.lr": (0.1, 0.2), "optimizer.weight_decay": (1, 2)}
    grid = [{"optimizer.lr": rate, "optimizer.weight_decay": decay} for rate in (0.1, 0.2) for decay in (1, 2)]
    asked = plan(1, arms=tuple(Arm(name=name, grid=keys) for name in PAIR))
    rows = [
        row(arm, point, 0, float(index != best), 0.7)
        for arm, best in (("grr_coca", 2), ("baseline_coca", 1))
        for index, point in enumerate(grid)
    ]
    (found,) = grid_results(asked, tried(rows))
    assert (found.model.best, found.baseline.best) == (grid[2], grid[1])
    assert len(found.at_points) == 4
    assert "lr 0.2, weight_decay 2" in grid_curves(found, arm_titles(asked))


def test_compares_only_grids_with_the_plans_seeds():
    assert grid_results(plan(2, tuning=Tuning(seeds=(9,))), tried(ROWS)) == ()
    rows = tuple(row(name, {}, 0, 0.0, 0.0) for name in PAIR)
    assert grid_results(plan(1, arms=tuple(Arm(name=name) for name in PAIR)), Ledger(rows)) == ()
    tuned = plan(2, finetune=("health.yaml",), endpoints=Endpoints(primary=("finetuning/coca_loss",)))
    assert grid_results(tuned, tried(ROWS)) == (), "it starts from the best point alone"


def with_recalls(of_model: list[list[float]]) -> tuple[Plan, Ledger]:
    """A plan of R@1 on the split `test_style`, and its rows: of the model by rate and seed, 0.1 of the baseline."""
    val = {"grr_coca": [[0.3, 0.3], [0.1, 0.2], [0.4, 0.1]], "baseline_coca": VAL["baseline_coca"]}
    asked = plan(2, endpoints=Endpoints(primary=("pretraining/R@1",), split="test_style"))

    def recall(of: LedgerRow) -> float:
        return of_model[RATES.index(of.settings["optimizer.lr"])][of.seed] if of.arm == "grr_coca" else 0.1

    return asked, tried(
        replace(r, metrics={"val": r.metrics["val"], "test_style": {"R@1": recall(r)}}) for r in rows_of(val, TEST)
    )


def test_a_rate_whose_recall_is_zero_is_not_chosen_in_a_draw():
    """It has no logarithm. On `val`, draws of the second seed alone are for it."""
    asked, ledger = with_recalls([[0.1, 0.1], [0.2, 0.2], [0.3, 0.0]])
    (found,) = grid_results(asked, ledger)
    assert found.model.best == {"optimizer.lr": 0.006}
    assert np.isfinite(found.best.interval).all()
    assert rates(found) == [0.003, 0.006]
    svg = grid_curves(found, arm_titles(asked))
    assert svg == grid_curves(found, arm_titles(asked)), "equal results give equal figures"
    for text in ("GRR-CoCa", "Baseline CoCa", "0.003", "0.012", "CoCa loss on val", "R@1, text to image on test_style"):
        assert f">{text}" in svg
    assert grid_results(*with_recalls([[0.0, 0.1]] * 3)) == (), "no rate can be compared"


def test_intervals_over_both_draw_seeds_and_images_at_each_point():
    """Each of eight images has the loss of its split, so that seeds alone differ: those of two are drawn."""

    def with_images(row: LedgerRow) -> LedgerRow:
        loss = row.metrics["test"]["coca_loss"]
        values = {"test": {"nll": 8 * [loss], "tokens": 8 * [1]}}
        return replace(row, metrics={**row.metrics, "test": {"captioning_loss": loss}}, values=values)

    asked = plan(2, endpoints=Endpoints(primary=("pretraining/captioning_loss",)))
    (found,) = grid_results(asked, tried(map(with_images, ROWS)))
    assert found.best_over_both == pytest.approx((as_percent(-0.06), as_percent(-0.05))), "0.006 over 0.012"
    assert found.at_points[2].over_both == pytest.approx((as_percent(-0.38), as_percent(-0.35)))


def test_a_report_shows_each_arm_at_its_best_point(tmp_path):
    with_recall = (replace(r, metrics={**r.metrics, "test": {**r.metrics["test"], "R@1": 0.25}}) for r in ROWS)
    endpoints = Endpoints(primary=("pretraining/coca_loss",), secondary=("pretraining/R@1",))
    write_study(tmp_path, to_dict(plan(2, endpoints=endpoints)), with_recall)
    write_study_report(tmp_path, tmp_path)
    page, text = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for told in (page, text):
        assert "GRR-CoCa at lr 0.006 and Baseline CoCa at lr 0.012" in told
        assert "−5.8 to −4.9" in told
        assert "100 % of the draws of 2 seeds chose these best settings." in told
    assert "<h2>GRR-CoCa at its best settings</h2>" in page
    (line,) = (line for line in text.splitlines() if line.startswith("| pictograms | lr 0.012"))
    assert [cell.strip() for cell in line.split("|")[3:5]] == ["1.284", "1.105, best, at an end"]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [each["model"]["best"] for each in results["grids"]] == [{"optimizer.lr": 0.006}]
    assert results["arms"][0]["endpoints"][0]["effect"]["change"] == pytest.approx(as_percent(-0.055)), "at the best"


def eight_seeds(best_on_test: list[float]) -> tuple[Plan, Ledger]:
    """The model's best rate is 0.006 and the baseline's 0.012; there the baseline's log loss on `test` is 0.3."""
    val = {"grr_coca": [[0.3] * 8, [0.1] * 8, [0.2] * 8], "baseline_coca": [[0.5] * 8, [0.3] * 8, [0.1] * 8]}
    test = {"grr_coca": [[0.5] * 8, best_on_test, [0.4] * 8], "baseline_coca": [[0.6] * 8, [0.4] * 8, [0.3] * 8]}
    rows, best = rows_of(val, test), {"grr_coca": 0.006, "baseline_coca": 0.012}
    return plan(8), Ledger(tuple(r for r in rows if r.settings["optimizer.lr"] == best[r.arm]), tuple(rows))


BETTER = [0.2, 0.21, 0.19, 0.2, 0.22, 0.2, 0.18, 0.2]


@pytest.mark.parametrize(
    ("on_test", "verdict"),
    [
        (BETTER, "Better"),
        ([0.4, 0.41, 0.39, 0.4, 0.42, 0.4, 0.38, 0.4], "Worse"),
        ([0.2, 0.41, 0.29, 0.3, 0.32, 0.3, 0.28, 0.31], "Undecided"),
        ([0.3, 0.31, 0.29, 0.3, 0.302, 0.3, 0.298, 0.3], "Equal within ±2 %"),
    ],
)
def test_the_answer_compares_best_with_best(on_test, verdict):
    asked, ledger = eight_seeds(on_test)
    found = answer(asked, study_results(asked, ledger))
    assert found.question == "Is GRR-CoCa better than Baseline CoCa, each at its best settings?"
    assert found.headline == f"{verdict} in 1 of 1 primary endpoint"


def test_fine_tuned_endpoint_has_no_verdict_over_settings():
    asked, ledger = eight_seeds(BETTER)
    endpoints = Endpoints(primary=("finetuning/coca_loss", "pretraining/coca_loss"))
    tuned = tuple(replace(each, stage="health") for each in ledger.rows)
    asked, ledger = (
        replace(asked, finetune=("health.yaml",), endpoints=endpoints),
        replace(ledger, rows=(*ledger.rows, *tuned)),
    )
    found = study_results(asked, ledger)
    assert [each.endpoint for each in found.grids] == ["pretraining/coca_loss"]
    assert [result.verdict for result in found.arms[0].endpoints] == ["undecided", "better"]
    assert [result.with_choice is None for result in found.arms[0].endpoints] == [True, False]
    fixed = replace(asked, arms=tuple(Arm(name=name) for name in PAIR))
    assert [result.verdict for result in study_results(fixed, ledger).arms[0].endpoints] == ["better", "better"]
