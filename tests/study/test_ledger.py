"""The ledger: what was written is there, once, and nothing else counts."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from grr_coca.common.errors import UserError
from grr_coca.study.ledger import (
    LEDGER_FILE,
    CaptionedExample,
    CurvePoint,
    Digests,
    LedgerRow,
    LedgerWriter,
    finite,
    is_locked,
    read_ledger,
    write_digests,
)
from support import syncs_and_renames

DIGESTS = Digests(recipes={"grr_coca": {"emoji": "r1"}, "baseline_coca": {"emoji": "r2"}}, data={"emoji": "d"})


def a_row(arm: str = "grr_coca", seed: int = 0, **changes: object) -> LedgerRow:
    row = LedgerRow(
        arm=arm,
        seed=seed,
        stage="emoji",
        recipe_digest=DIGESTS.recipes.get(arm, {}).get("emoji", "none"),
        data_digest="d",
        commit="abc",
        machine="a machine",
        precision="fp32",
        settings={"optimizer.lr": 0.003, "optimizer.name": "muon"},
        steps=6,
        seconds=1.5,
        parameters=10,
        image_encoder_parameters=4,
        flops_per_pair=100,
        curve=(CurvePoint(3, {"contrastive": 2.0}, {"coca_loss": 4.0}),),
        metrics={"test": {"coca_loss": 2.5, "R@1": 0.5}},
        values={"test": {"nll": [1.5, 2.25], "rank": [0, 3]}},
        captions=(CaptionedExample("grin", ("grinning face", "smile"), "smiling face ☺"),),
    )
    return replace(row, **changes)


@pytest.fixture
def folder(tmp_path):
    write_digests(tmp_path, DIGESTS)
    return tmp_path


def write(folder, *rows, name: str = LEDGER_FILE):
    with LedgerWriter(folder / name) as ledger:
        for row in rows:
            ledger.append(row)
    return folder / name


def test_rows_come_back_as_they_were_written(folder):
    rows = (a_row(), a_row("baseline_coca"), a_row(seed=1))
    write(folder, *rows[:2])
    write(folder, rows[2])
    ledger = read_ledger(folder)
    assert ledger.rows == rows
    assert ledger.notes == ()


def test_rows_without_hashes_of_their_beginning_still_count(folder):
    path = write(folder, a_row(), a_row("baseline_coca", initial_weights={"scale []": "a"}, data_order="o"))
    old, new = map(json.loads, path.read_text().splitlines())
    del old["initial_weights"], old["data_order"]
    path.write_text(json.dumps(old) + "\n" + json.dumps(new) + "\n")
    ledger = read_ledger(folder)
    assert [(row.arm, row.data_order) for row in ledger.rows] == [("grr_coca", None), ("baseline_coca", "o")]
    assert ledger.notes == (
        "1 row of an old version without hashes: whether initial weights and data order are those of other rows of the "
        "seed is not checked",
    )
    path.write_text(json.dumps(old) + "\n")
    assert read_ledger(folder).notes == (), "there is nothing to compare with"


def test_runs_of_a_seed_that_do_not_begin_alike_are_named(folder):
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
    assert read_ledger(folder).notes == (
        "grr_coca, seed 0, emoji: 1 of 2 parameters have other initial values than in baseline_coca, such as "
        "norm.weight [4]",
        "grr_coca, seed 1, emoji: was not trained on the same pairs in the same order as baseline_coca",
    )


def test_a_line_has_the_keys_that_programs_look_for(folder):
    (line,) = write(folder, a_row()).read_text().splitlines()
    keys = ["arm", "seed", "stage", "recipe_digest", "data_digest", "steps", "seconds", "machine", "precision"]
    assert {*keys, "metrics"} <= json.loads(line).keys()


def test_trials_and_choices_are_kept_apart(folder):
    write(folder, a_row(kind="trial"), a_row(kind="choice"), a_row())
    ledger = read_ledger(folder)
    assert [len(part) for part in (ledger.rows, ledger.trials, ledger.choices)] == [1, 1, 1]


def test_the_newest_choice_is_the_choice(folder):
    write(folder, a_row(kind="choice", steps=1), a_row("baseline_coca", kind="choice"), a_row(kind="choice", steps=2))
    assert [(row.arm, row.steps) for row in read_ledger(folder).choices] == [("grr_coca", 2), ("baseline_coca", 6)]


def test_of_choices_in_several_ledgers_that_counts_which_runs_were_made_with(folder):
    """Which of them is newer cannot be told."""
    used, other = ({"optimizer.lr": rate} for rate in (0.012, 0.006))
    write(folder, a_row(kind="choice", settings=used), a_row(settings=used))
    write(folder, a_row(kind="choice", settings=other), name="runs-1-of-2.jsonl")
    assert [row.settings for row in read_ledger(folder).choices] == [used]
    write(folder, a_row(kind="choice", settings=other))
    assert [row.settings for row in read_ledger(folder).choices] == [used]


def test_what_was_run_after_the_shards_counts_as_newer(folder):
    write(folder, a_row(steps=2))
    write(folder, a_row(steps=1), name="runs-1-of-2.jsonl")
    assert [row.steps for row in read_ledger(folder).rows] == [2]


def test_digests_that_lack_the_data_of_a_stage_are_told(folder):
    write_digests(folder, replace(DIGESTS, data={"health": "d"}))
    write(folder, a_row())
    ledger = read_ledger(folder)
    assert ledger.rows == ()
    assert "digests.json has no digest of its data; `grr-coca study run` writes it again" in ledger.notes[0]


def test_a_torn_last_line_is_dropped_and_named_and_the_next_row_is_whole(folder):
    path = write(folder, a_row(), a_row("baseline_coca"))
    torn = path.read_bytes()[:-20]
    path.write_bytes(torn)
    ledger = read_ledger(folder)
    assert [row.arm for row in ledger.rows] == ["grr_coca"]
    assert ledger.notes == (
        "runs.jsonl: the last line is torn, as after a kill; it is ignored, and its run is repeated",
    )
    write(folder, a_row(seed=1))
    ledger = read_ledger(folder)
    assert [(row.arm, row.seed) for row in ledger.rows] == [("grr_coca", 0), ("grr_coca", 1)]
    assert ledger.notes == ()


def test_a_whole_last_row_that_lacks_its_newline_alone_is_kept(folder):
    path = write(folder, a_row(), a_row("baseline_coca"))
    path.write_bytes(path.read_bytes().rstrip())
    ledger = read_ledger(folder)
    assert ([row.arm for row in ledger.rows], ledger.notes) == (["grr_coca", "baseline_coca"], ())
    write(folder, a_row(seed=1))
    ledger = read_ledger(folder)
    assert [(row.arm, row.seed) for row in ledger.rows] == [("grr_coca", 0), ("baseline_coca", 0), ("grr_coca", 1)]
    assert ledger.notes == ()


def test_the_name_of_an_image_need_not_be_utf_8(folder):
    row = a_row(captions=(CaptionedExample("caf\udce9", ("a cup",), "a cup"),))
    write(folder, row)
    assert read_ledger(folder).rows == (row,)


@pytest.mark.parametrize("line", ["{", "[]", '{"arm": "grr_coca"}', '{"flavour": 1}'], ids=str)
def test_a_line_that_is_no_row_is_named(folder, line):
    path = write(folder, a_row())
    path.write_text(line + "\n" + path.read_text())
    ledger = read_ledger(folder)
    assert len(ledger.rows) == 1
    assert "line 1 is invalid" in ledger.notes[0]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"recipe_digest": "other"}, "another recipe (other, not r1)"),
        ({"data_digest": "other"}, "other data (other, not d)"),
        ({"start_data_digest": "other"}, "other data of pretraining (other, not d)"),
        ({"arm": "coca"}, "the plan has no such run"),
        ({"stage": "stage"}, "the plan has no such run"),
    ],
    ids=str,
)
def test_rows_of_something_else_are_named_and_not_counted(folder, changes, why):
    write(folder, a_row(), a_row(seed=1, **changes))
    ledger = read_ledger(folder)
    assert [row.seed for row in ledger.rows] == [0]
    assert why in ledger.notes[0]


TUNED = replace(DIGESTS, trials={"grr_coca": {"emoji": ("t1", "t2")}, "baseline_coca": {}}, tuning_seed=9)


def a_trial(**changes: object) -> LedgerRow:
    return a_row(**{"kind": "trial", "seed": 9, "recipe_digest": "t1", **changes})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"recipe_digest": "t3"}, "another recipe (t3, none of the 2 that the plan tries)"),
        ({"data_digest": "other"}, "other data (other, not d)"),
        ({"seed": 8}, "another seed than that of tuning (8, not 9)"),
        ({"arm": "coca"}, "the plan has no such arm"),
        ({"stage": "stage"}, "the plan has no such stage"),
    ],
    ids=str,
)
def test_trials_of_something_else_are_named_and_choose_nothing(folder, changes, why):
    write_digests(folder, TUNED)
    chosen = a_trial(kind="choice")
    write(folder, chosen, a_trial(), a_trial(recipe_digest="t2"), a_trial(**changes), replace(chosen, **changes))
    ledger = read_ledger(folder)
    assert [row.recipe_digest for row in ledger.trials] == ["t1", "t2"]
    assert ledger.choices == (chosen,), "the newer one is of something else"
    (note,) = ledger.notes
    arm, stage = changes.get("arm", "grr_coca"), changes.get("stage", "emoji")
    assert note == f"{arm}, {stage}, trial of optimizer.lr 0.003, optimizer.name muon: not counted: {why}"


def test_trials_count_as_long_as_nobody_can_tell_what_they_start_from(folder):
    write_digests(folder, TUNED)
    write(folder, a_trial(arm="baseline_coca", recipe_digest="unknown"))
    assert len(read_ledger(folder).trials) == 1
    write_digests(folder, DIGESTS)
    ledger = read_ledger(folder)
    assert (len(ledger.trials), ledger.notes) == (1, ()), "digests of an older version say nothing of trials"


def test_seeds_that_were_taken_out_of_the_plan_do_not_count(folder):
    write(folder, a_row(), a_row(seed=7))
    assert [row.seed for row in read_ledger(folder).rows] == [0, 7]
    ledger = read_ledger(folder, seeds=(0, 1))
    assert [row.seed for row in ledger.rows] == [0]
    assert ledger.notes == ("grr_coca, seed 7, emoji: not counted: the plan has no such seed",)


def test_the_newer_of_two_rows_counts(folder):
    write(folder, a_row(steps=1), a_row(steps=2))
    ledger = read_ledger(folder)
    assert [row.steps for row in ledger.rows] == [2]
    assert "has two rows" in ledger.notes[0]


def test_a_run_that_diverged_and_was_measured_later_did_not_diverge(folder):
    write(folder, a_row(kind="diverged", metrics={}), a_row(), a_row(seed=1, kind="diverged", metrics={}))
    ledger = read_ledger(folder)
    assert [row.seed for row in ledger.rows] == [0]
    assert [row.seed for row in ledger.diverged] == [1]


@pytest.mark.parametrize(("began_with", "counts"), [("d", True), ("h", False), (None, True)])
def test_a_fine_tuning_counts_if_its_pretraining_was_on_the_data_of_the_plan(folder, began_with, counts):
    write_digests(folder, Digests(recipes={"grr_coca": {"health": "r1"}}, data={"emoji": "d", "health": "h"}))
    write(folder, a_row(stage="health", data_digest="h", start_data_digest=began_with))
    ledger = read_ledger(folder)
    assert len(ledger.rows) == counts
    assert counts or "other data of pretraining (h, not d)" in ledger.notes[0]


def test_a_row_is_on_the_disk_when_it_has_been_appended(folder, monkeypatch):
    path = write(folder, a_row())
    done = syncs_and_renames(monkeypatch)
    with LedgerWriter(path) as ledger:
        ledger.append(a_row(seed=1))
        assert done[-1] == ("sync", str(path))


def test_of_two_rows_the_one_with_fewer_metrics_does_not_count(folder):
    scored = a_row(metrics={"test": {"coca_loss": 2.5, "R@1": 0.5, "CIDEr-D": 1.0}})
    write(folder, scored, a_row())
    ledger = read_ledger(folder)
    assert (ledger.rows, ledger.notes) == (
        (scored,),
        ("grr_coca, seed 0, emoji: has two rows; the one with more metrics counts",),
    )


def test_rows_of_several_commits_are_counted_and_told(folder):
    write(folder, a_row(), a_row(seed=1), a_row(seed=2, commit="def+"))
    ledger = read_ledger(folder)
    assert len(ledger.rows) == 3
    assert ledger.notes == ("rows come from 2 commits: 2 of abc, 1 of def+",)


def test_the_ledgers_of_shards_are_read_as_one(folder):
    write(folder, a_row(), name="runs-1-of-2.jsonl")
    write(folder, a_row(seed=1), name="runs-2-of-2.jsonl")
    assert [row.seed for row in read_ledger(folder).rows] == [0, 1]


def test_a_folder_without_a_ledger_is_a_user_error(folder):
    with pytest.raises(UserError, match=r"runs\.jsonl is missing"):
        read_ledger(folder)


HOLD = """
import sys, pathlib
from grr_coca.study.ledger import LedgerWriter
with LedgerWriter(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_ledger_is_taken_while_it_is_written_and_keeps_no_other_file(folder):
    path = write(folder, a_row())
    assert not is_locked(path)
    with LedgerWriter(path):
        assert is_locked(path)
    assert not is_locked(path)
    assert [other.name for other in folder.iterdir() if other.name.endswith(".lock")] == []


def test_a_second_process_on_a_ledger_says_so(folder):
    path = folder / LEDGER_FILE
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(UserError, match="another process is running this study"), LedgerWriter(path):
            pass
        other.kill()
    assert not is_locked(path)
    write(folder, a_row())


def test_a_full_disk_leaves_no_part_of_a_row(folder, monkeypatch):
    path = write(folder, a_row())
    before, real = path.read_bytes(), os.write
    monkeypatch.setattr("grr_coca.study.ledger.os.write", lambda file, line: real(file, line[: len(line) // 2]))
    with pytest.raises(UserError, match=r"seed 1, emoji could not be written \(the disk is full\)"):
        write(folder, a_row(seed=1))
    assert path.read_bytes() == before


def test_numbers_that_are_none_are_left_out():
    assert finite({"a": 1.0, "b": float("nan"), "c": float("inf")}) == {"a": 1.0}
