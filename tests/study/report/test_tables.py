"""Tables of a study."""

from dataclasses import replace

from grr_coca.study.ledger import Ledger
from grr_coca.study.plan import Plan, read_plan
from grr_coca.study.report.tables import settings_table
from synthetic_study import arm, plan, rows_of, write_study

ARMS = ("baseline_coca", "grr_coca")
RATES = {"optimizer.lr": [0.003, 0.006, 0.012]}


def test_each_point_has_a_line_and_each_arm_with_a_grid_a_column(tmp_path):
    trials = [
        replace(row, metrics={} if row.arm == "grr_coca" else {"val": {"coca_loss": 5.0}})
        for stage in ("pictograms", "health")
        for lr in RATES["optimizer.lr"]
        for row in rows_of(ARMS, [100], settings={"optimizer.lr": lr})
        if row.stage == stage and (row.arm, row.stage) != ("grr_coca", "health")
    ]
    arms = [*(arm(name, grid=RATES, finetune_grid=RATES) for name in ARMS), "baseline_rms_geglu"]
    write_study(tmp_path, plan(arms, tuning={"seeds": [100]}), [])
    chosen = {("baseline_coca", "health"): {"optimizer.lr": 0.012}}
    table = settings_table(read_plan(tmp_path / "plan.yaml", Plan), Ledger((), tuple(trials), chosen))
    assert table.heads == ("stage", "settings", "Baseline CoCa", "GRR-CoCa")
    assert table.rows == (
        ("pictograms", "lr 0.003", "5.000", "diverged"),
        ("pictograms", "lr 0.006", "5.000", "diverged"),
        ("pictograms", "lr 0.012", "5.000", "diverged"),
        ("health", "lr 0.003", "5.000", "–"),
        ("health", "lr 0.006", "5.000", "–"),
        ("health", "lr 0.012", "5.000, taken", "–"),
    )
    assert table.note.startswith("CoCa loss on val, seed 100. These seeds are not among the plan's")
    assert "a better value may lie beyond it: health, lr 0.012 (Baseline CoCa)." in table.note


def test_losses_of_several_seeds_are_geometric_means(tmp_path):
    rows = [
        replace(row, metrics={"val": {"coca_loss": loss}}, settings={"optimizer.lr": 0.003})
        for seed, loss in enumerate((2.0, 8.0))
        for row in rows_of(ARMS[:1], [seed])
        if row.stage == "pictograms"
    ]
    write_study(tmp_path, plan([arm(ARMS[0], grid=RATES), ARMS[1]], 2), [])
    table = settings_table(read_plan(tmp_path / "plan.yaml", Plan), Ledger((), tuple(rows)))
    assert table.rows == (("pictograms", "lr 0.003", "4.000"),)
    assert table.note == "CoCa loss on val, seeds 0 and 1."
