"""The ledger: the rows of the plan count, once, and at the best points of the grids; nothing else does."""

from dataclasses import replace

import pytest
from synthetic_study import plain_row

from grr_coca.common.errors import UserError
from grr_coca_study.ledger import Digests, read_ledger, write_digests
from grr_coca_study.plan import Arm, Endpoints, Plan, Tuning
from grr_coca_study.rows import LedgerRow, RowFolder

DIGESTS = Digests(recipes={"baseline_coca": {"emoji": ("r2",)}, "grr_coca": {"emoji": ("r1",)}}, data={"emoji": "d"})
PLAN = Plan(
    arms=(Arm(name="baseline_coca"), Arm(name="grr_coca")),
    baseline="baseline_coca",
    seeds=(0, 1, 2),
    pretrain="emoji.yaml",
    endpoints=Endpoints(primary=("pretraining/coca_loss",)),
    showcase="test",
)


def a_row(arm: str = "grr_coca", seed: int = 0, loss: float = 2.5, **changes: object) -> LedgerRow:
    digest = {"grr_coca": "r1", "baseline_coca": "r2"}.get(arm, "none")
    metrics = {"val": {"coca_loss": loss}, "test": {"coca_loss": loss, "R@1": 0.5}}
    return plain_row(**{"arm": arm, "seed": seed, "recipe_digest": digest, "metrics": metrics, **changes})


@pytest.fixture
def folder(tmp_path):
    write_digests(tmp_path, DIGESTS)
    return tmp_path


def write(folder, *rows: LedgerRow) -> None:
    files = RowFolder(folder)
    for row in rows:
        number = len(list(files.path.glob("*"))) if files.path.exists() else 0
        files.publish(f"{number:03}", row)


def test_rows_are_in_the_order_of_the_plan(folder):
    rows = (a_row(), a_row("baseline_coca"), a_row(seed=1))
    write(folder, *rows)
    ledger = read_ledger(folder, PLAN)
    assert ledger.rows == (rows[1], rows[0], rows[2])
    assert (ledger.notes, ledger.tried, ledger.chosen) == ((), (), {})
    assert ledger.missing_runs == {
        ("baseline_coca", 1, "emoji"),
        ("baseline_coca", 2, "emoji"),
        ("grr_coca", 2, "emoji"),
    }


def test_runs_of_a_seed_with_different_starts_are_named(folder):
    weights = {"scale []": "a", "norm.weight [4]": "b", "up_proj.weight [8, 4]": "c"}
    began = {"initial_weights": weights, "data_order": "o"}
    other = {**weights, "norm.weight [4]": "x", "up_proj.weight [9, 4]": "y"}
    del other["up_proj.weight [8, 4]"]
    write(
        folder,
        a_row("baseline_coca", **began),
        a_row("grr_coca", **{**began, "initial_weights": other}),
        a_row("baseline_coca", seed=1, **began),
        a_row("grr_coca", seed=1, **{**began, "data_order": "p"}),
        a_row("baseline_coca", seed=2, initial_weights={"scale []": "z"}, data_order="q"),
        a_row("grr_coca", seed=2, initial_weights={"scale []": "z"}, data_order="r", steps=7),
    )
    assert read_ledger(folder, PLAN).notes == (
        "grr_coca, seed 0, emoji: 1 of 2 parameters have other initial values than in baseline_coca, such as "
        "norm.weight [4]",
        "grr_coca, seed 1, emoji: was not trained on the same pairs in the same order as baseline_coca",
    )


def test_digests_without_data_of_a_stage_are_reported(folder):
    write_digests(folder, replace(DIGESTS, data={"health": "d"}))
    write(folder, a_row())
    ledger = read_ledger(folder, PLAN)
    assert ledger.rows == ()
    assert "digests.json has no digest of its data; `grr-coca study run` writes it again" in ledger.notes[0]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"recipe_digest": "other"}, "another recipe (other, not r1)"),
        ({"data_digest": "other"}, "other data (other, not d)"),
        ({"start_data_digest": "other"}, "other data of pretraining (other, not d)"),
        ({"arm": "coca"}, "the plan has no such run"),
        ({"stage": "stage"}, "the plan has no such run"),
        ({"seed": 7}, "the plan has no such seed"),
    ],
    ids=str,
)
def test_foreign_rows_are_named_and_not_counted(folder, changes, why):
    write(folder, a_row(), a_row(**{"seed": 1, **changes}))
    ledger = read_ledger(folder, PLAN)
    assert [row.seed for row in ledger.rows] == [0]
    assert ledger.notes[0].endswith(f"not counted: {why}")


def test_diverged_run_is_separate(folder):
    write(folder, a_row(kind="diverged", metrics={}), a_row(seed=1))
    ledger = read_ledger(folder, PLAN)
    assert [row.seed for row in ledger.rows] == [1]
    assert [row.seed for row in ledger.diverged] == [0]
    assert ("grr_coca", 0, "emoji") not in ledger.missing_runs


@pytest.mark.parametrize("is_first", [True, False])
def test_row_with_more_metrics_replaces_the_other(folder, is_first):
    scored = a_row(metrics={"test": {"coca_loss": 2.5, "R@1": 0.5, "CIDEr-D": 1.0}})
    poorer = a_row(metrics={"test": {"coca_loss": 2.5}})
    write(folder, *((scored, poorer) if is_first else (poorer, scored)))
    ledger = read_ledger(folder, PLAN)
    assert (ledger.rows, ledger.notes) == (
        (scored,),
        ("grr_coca, seed 0, emoji: has two rows; the one with more metrics counts",),
    )


def test_rows_of_several_commits_are_counted(folder):
    write(folder, a_row(), a_row(seed=1), a_row(seed=2, commit="def+"))
    ledger = read_ledger(folder, PLAN)
    assert len(ledger.rows) == 3
    assert ledger.notes == ("rows come from 2 commits: 2 of abc, 1 of def+",)


def test_folder_without_rows_is_a_user_error(folder):
    with pytest.raises(UserError, match="rows is missing"):
        read_ledger(folder, PLAN)


# --- Grids

RATES = (0.1, 0.2)
GRID = replace(PLAN, arms=(Arm(name="baseline_coca"), Arm(name="grr_coca", grid={"optimizer.lr": RATES})))


def at(rate: float, seed: int, loss: float, **changes: object) -> LedgerRow:
    """A row of the arm with the grid."""
    return a_row(seed=seed, loss=loss, recipe_digest=f"r{rate}", settings={"optimizer.lr": rate}, **changes)


@pytest.fixture
def grid(tmp_path):
    write_digests(tmp_path, replace(DIGESTS, trials={"grr_coca": {"emoji": ("r0.1", "r0.2")}}))
    return tmp_path


GONE = {"kind": "diverged", "metrics": {}}


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        # Of the mean logarithms of 1 and 5, and of 2 and 3, the first is lower; of the means the second.
        ([at(0.1, 8, 1.0), at(0.1, 9, 5.0), at(0.2, 8, 2.0), at(0.2, 9, 3.0)], 0.1),
        ([at(0.1, 8, 1.0), at(0.2, 8, 2.0), at(0.2, 9, 0.1)], 0.1),
        ([at(0.2, 8, 2.0), at(0.2, 9, 0.1)], None),
        ([at(0.1, 8, 1.0), at(0.1, 9, 1.0, **GONE), at(0.2, 8, 9.0), at(0.2, 9, 9.0)], 0.2),
        ([at(0.1, 8, 1.0), at(0.1, 9, 1.0, **GONE), at(0.2, 8, 1.0, **GONE), at(0.2, 9, 9.0)], None),
    ],
    ids=["best", "a seed lacks a point", "all seeds lack one", "a point diverged with one seed", "each diverged"],
)
def test_best_point_is_over_seeds_with_all_points(grid, rows, best):
    write(grid, *rows)
    ledger = read_ledger(grid, replace(GRID, tuning=Tuning(seeds=(8, 9))))
    assert ledger.chosen == ({} if best is None else {("grr_coca", "emoji"): {"optimizer.lr": best}})
    assert len(ledger.tried) == len(rows)
    assert (ledger.rows, ledger.diverged) == ((), ())


def test_trials_choose_and_do_not_count_as_runs(grid):
    """Those of a seed that is neither the plan's nor of tuning do nothing."""
    trials = {"grr_coca": {"emoji": ("r0.1", "r0.2")}}
    write_digests(grid, replace(DIGESTS, recipes={"grr_coca": {"emoji": ("run",)}}, trials=trials))
    plan = replace(GRID, tuning=Tuning(seeds=(9,)))
    write(grid, at(0.1, 9, 3.0), at(0.2, 9, 2.0), at(0.1, 8, 1.0), a_row(recipe_digest="run"))
    ledger = read_ledger(grid, plan)
    assert [row.recipe_digest for row in ledger.rows] == ["run"]
    assert [row.seed for row in ledger.tried] == [9, 9]
    assert ledger.chosen == {("grr_coca", "emoji"): {"optimizer.lr": 0.2}}
    assert ledger.notes == ("grr_coca, lr 0.1, seed 8, emoji: not counted: the plan has no such seed",)


def test_shared_settings_are_those_that_are_best_on_average(grid):
    digests = {"emoji": ("r0.1", "r0.2")}
    write_digests(grid, replace(DIGESTS, trials={"baseline_coca": digests, "grr_coca": digests}))
    arms = tuple(Arm(name=name, grid={"optimizer.lr": RATES}) for name in ("baseline_coca", "grr_coca"))
    plan = replace(PLAN, arms=(*arms, Arm(name="coca")), tuning=Tuning(seeds=(9,), shared=True))
    write(grid, *(at(rate, 9, loss) for rate, loss in zip(RATES, (1.0, 9.0), strict=True)))
    assert read_ledger(grid, plan).chosen == {}
    write(
        grid, *(replace(at(rate, 9, loss), arm="baseline_coca") for rate, loss in zip(RATES, (8.0, 0.5), strict=True))
    )
    best = {(name, "emoji"): {"optimizer.lr": 0.2} for name in ("baseline_coca", "grr_coca", "coca")}
    assert read_ledger(grid, plan).chosen == best
