"""Trials at equal CPU time: which go on, what each trains, and that a stopped one goes on."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import trials
from grr_coca.errors import UserError
from grr_coca.structure import to_dict
from grr_coca.train.recipe import save_recipe
from support import real_pairs, tiny_recipe, write_shard
from trials import Plan, Row, candidates, changed, read_rows, work

PLAN = Plan(recipe="r.yaml", rungs=(1.0, 2.0, 4.0), trials={name: {} for name in "abcde"})


def row(trial: str, rung: float, score: float, name: str = "text_to_image/R@1") -> Row:
    return Row(trial=trial, rung=rung, steps=3, parameters=5, cpu_seconds=rung, scores={name: score})


def test_the_better_half_goes_on():
    first = [row(name, 1.0, score) for name, score in zip("abcde", (0.1, 0.5, 0.2, 0.4, 0.3), strict=True)]
    assert candidates(PLAN, 1.0, []) == list("abcde")
    assert candidates(PLAN, 2.0, first) == ["b", "d", "e"]
    second = [row(name, 2.0, score) for name, score in (("b", 0.1), ("d", 0.2), ("e", 0.3))]
    assert candidates(PLAN, 4.0, first + second) == ["d", "e"]


def test_the_lower_half_of_losses_goes_on():
    plan = replace(PLAN, score="contrastive_loss", trials={name: {} for name in "abc"})
    rows = [row(name, 1.0, score, "contrastive_loss") for name, score in zip("abc", (3.0, 1.0, 2.0), strict=True)]
    assert candidates(plan, 2.0, rows) == ["b", "c"]


@pytest.mark.parametrize("rungs", [(), (2.0, 1.0), (0.0, 1.0), (1.0, 1.0)])
def test_rungs_that_do_not_increase_are_refused(rungs):
    with pytest.raises(UserError, match="must be CPU seconds in increasing order"):
        replace(PLAN, rungs=rungs)


@pytest.fixture
def plan_file(tmp_path):
    """A plan of two trials over a small recipe."""
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(24)))
    save_recipe(recipe, tmp_path / "recipe.yaml")
    path = tmp_path / "plan.yaml"
    keys = {"model.image_dim": 64, "optimizer.lr": 0.002}
    content = {"recipe": "recipe.yaml", "rungs": [0.5, 1.0], "trials": {"plain": {}, "narrow": keys}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_trial_changes_its_keys_alone(plan_file):
    plan = replace(PLAN, recipe="recipe.yaml", trials={"narrow": {"model.image_dim": 64, "optimizer.lr": 0.002}})
    plain = changed(plan_file, replace(plan, trials={"plain": {}}), "plain")
    narrow = changed(plan_file, plan, "narrow")
    assert narrow == replace(
        plain, model=replace(plain.model, image_dim=64), optimizer=replace(plain.optimizer, lr=0.002)
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.image_width": 64}, "unknown key 'image_width'"),
        ({"modell.image_dim": 64}, "the recipe has no section 'modell'"),
        ({"model.image_dim": "wide"}, "image_dim: expected int, found 'wide'"),
        ([1], "expected keys of the recipe and their values"),
    ],
)
def test_a_key_that_does_not_exist_is_named(plan_file, changes, said):
    with pytest.raises(UserError, match=rf"plan\.yaml: trials: x: .*{said}"):
        changed(plan_file, replace(PLAN, recipe="recipe.yaml", trials={"x": changes}), "x")


def test_a_score_that_validation_does_not_measure_is_refused_before_hours_of_training(plan_file, tmp_path):
    content = yaml.safe_load(plan_file.read_text())
    plan_file.write_text(yaml.safe_dump({**content, "score": "CIDEr"}, sort_keys=False))
    with pytest.raises(UserError, match="score CIDEr scores captions, and trial 'plain' has none"):
        work(plan_file, tmp_path / "runs", deadline=0.0)


def test_what_is_done_is_not_done_again_and_the_time_is_kept(plan_file, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(trials, "prepare", lambda recipe, seconds, out: ran.append(("steps", seconds)))
    monkeypatch.setattr(trials, "seconds_per_step", lambda recipe: 0.5 / 3)  # as where the rows are from

    def run(trial, rung, out, deadline):
        ran.append((trial, rung))
        return row(trial, rung, {"plain": 0.2, "narrow": 0.3}[trial])

    monkeypatch.setattr(trials, "run", run)
    assert not work(plan_file, tmp_path / "runs", deadline=0.0)
    assert ran == []
    assert work(plan_file, tmp_path / "runs", time.monotonic() + 60)
    first = [("steps", 0.5), ("steps", 0.5), ("plain", 0.5), ("narrow", 0.5)]
    assert ran == [*first, ("steps", 1.0), ("narrow", 1.0)]
    assert [to_dict(found) for found in read_rows(plan_file.with_suffix(".jsonl"))] == [
        json.loads(line) for line in plan_file.with_suffix(".jsonl").read_text().splitlines()
    ]
    assert work(plan_file, tmp_path / "runs", time.monotonic() + 60)
    assert len(ran) == 6


def test_a_rung_holds_as_many_steps_on_a_slower_machine():
    rows = [row("gone", 1.0, 0.1), row("a", 6.0, 0.2)]  # 2 seconds a step
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trials, "seconds_per_step", lambda recipe: 5.0)
        assert trials.seconds_over_rows({"a": object()}, rows) == 2.5
        assert trials.seconds_over_rows({"b": object()}, rows) == 1.0


def test_a_line_that_was_cut_off_is_named(tmp_path):
    log = tmp_path / "plan.jsonl"
    lines = [json.dumps(to_dict(row("a", 1.0, 0.5))) for _ in range(2)]
    log.write_text(f"{lines[0]}\n{lines[1][:20]}")
    with pytest.raises(UserError, match=r"plan\.jsonl: line 2 is not JSON .*; remove the line"):
        read_rows(log)


STUB = """#!{python}
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({folder!r}, "saved").touch()
    sys.exit(1)
signal.signal(signal.SIGUSR1, save)
pathlib.Path({folder!r}, "trains").touch()
time.sleep(60)
"""


@pytest.fixture
def handlers():
    """The handler of SIGTERM is the same again afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handlers")
def test_a_training_does_not_outlive_its_trial(plan_file, tmp_path, monkeypatch, capsys):
    """SIGTERM to this process alone, as a time limit sends it."""
    stub = tmp_path / "stub"
    stub.write_text(STUB.format(python=sys.executable, folder=str(tmp_path)))
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.setattr(sys, "argv", ["trials.py", str(plan_file), "--runs", str(tmp_path / "runs")])

    def prepare(recipe, rung, out):
        out.parent.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, out.with_name(f"{out.name}.yaml"))

    def end():
        while not (tmp_path / "trains").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trials, "prepare", prepare)
    threading.Thread(target=end, daemon=True).start()
    assert trials.main() == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "saved").exists()
    assert float((tmp_path / "runs" / "plan" / "plain 0.5.seconds").read_text()) > 0


@pytest.mark.ci
def test_a_plan_is_trained_to_its_end_over_a_stop(plan_file, tmp_path):
    plan_file.write_text(plan_file.read_text().replace("- 1.0\n", ""))
    assert not work(plan_file, tmp_path / "runs", time.monotonic() + 4)
    assert work(plan_file, tmp_path / "runs", time.monotonic() + 200)
    rows = read_rows(plan_file.with_suffix(".jsonl"))
    assert [found.rung for found in rows] == [0.5, 0.5]
    assert {found.trial for found in rows} == {"plain", "narrow"}
    assert rows[0].parameters > rows[1].parameters
    assert all(found.steps >= 1 and "text_to_image/R@1" in found.scores for found in rows)
