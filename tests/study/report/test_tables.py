"""Tables of a study."""

from dataclasses import replace

from grr_coca.study.ledger import Ledger
from grr_coca.study.plan import Plan, read_plan
from grr_coca.study.report.tables import tuning_table
from synthetic_study import plan, rows_of, write_study

ARMS = ("baseline_coca", "grr_coca")


def test_each_setting_has_a_line_and_each_arm_that_was_tuned_a_column(tmp_path):
    trials = [
        row
        for lr in (0.006, 0.003)  # trials end in any order
        for stage in ("health", "pictograms")
        for row in rows_of(ARMS, [100], kind="trial", settings={"optimizer.lr": lr})
        if row.stage == stage
    ]
    trials = [
        replace(row, metrics={} if row.arm == "grr_coca" else {"val": {"coca_loss": 5.0}})
        for row in trials
        if (row.arm, row.stage) != ("grr_coca", "health")
    ]
    choices = [
        replace(row, settings={"optimizer.lr": 0.006})
        for row in rows_of(ARMS, [100], kind="choice")
        if (row.arm, row.stage) == ("baseline_coca", "health")
    ]
    tuning = {"seed": 100, **{phase: {"optimizer.lr": [0.003, 0.006]} for phase in ("pretrain", "finetune")}}
    write_study(tmp_path, plan((*ARMS, "baseline_rms_geglu"), tuning=tuning), trials)
    made = read_plan(tmp_path / "plan.yaml", Plan)
    table = tuning_table(made, Ledger((), tuple(trials), tuple(choices), ()))
    assert table.heads == ("stage", "settings", "Baseline CoCa", "GRR-CoCa")
    assert table.rows == (
        ("pictograms", "lr 0.003", "5.000", "diverged"),
        ("pictograms", "lr 0.006", "5.000", "diverged"),
        ("health", "lr 0.003", "5.000", "–"),
        ("health", "lr 0.006", "5.000, taken", "–"),
    )


def test_a_recall_is_found_under_the_name_that_rows_give_it(tmp_path):
    rows = rows_of(ARMS, [100], kind="trial", metrics={"val": {"R@1": 0.25}})
    trials = tuple(row for row in rows if row.stage == "pictograms")
    tuning = {"seed": 100, "pretrain": {"optimizer.lr": [0.006]}, "score": "text_to_image/R@1"}
    write_study(tmp_path, plan(ARMS, tuning=tuning), trials)
    table = tuning_table(read_plan(tmp_path / "plan.yaml", Plan), Ledger((), trials, (), ()))
    assert table.rows == (("pictograms", "lr 0.006", "0.2500", "0.2500"),)
    assert table.note.startswith("R@1 on val")
