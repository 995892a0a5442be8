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
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.train.loop import train
from grr_coca.train.recipe import load_recipe, save_recipe
from grr_coca.train.setup import new_checkpoint, training_sources
from grr_coca.train.step import Trainer
from support import ALONE, real_pairs, tiny_recipe, write_shard
from trials import STEPS_A_TURN, Plan, Row, candidates, changed, prepare, read_rows, seconds_per_step, work

PLAN = Plan(recipe="r.yaml", rungs=(1.0, 2.0, 4.0), trials={name: {} for name in "abcde"})


def row(trial: str, rung: float, score: float, name: str = "text_to_image/R@1") -> Row:
    return Row(trial=trial, rung=rung, steps=3, parameters=5, cpu_seconds=rung, scores={name: score})


def diverged(trial: str, rung: float) -> Row:
    return Row(kind="diverged", trial=trial, rung=rung, steps=3, parameters=5, cpu_seconds=rung, scores={})


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


@pytest.mark.parametrize("score", ["contrastive_loss", "text_to_image/R@1"])
def test_what_diverged_does_not_go_on_though_half_of_the_places_stay_free(score):
    plan = replace(PLAN, score=score, trials={name: {} for name in "abcd"})
    rows = [diverged("a", 1.0), diverged("b", 1.0), diverged("c", 1.0), row("d", 1.0, 0.0, score)]
    assert candidates(plan, 2.0, rows) == ["d"]


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
    keys = {"model.image_dim": 32, "optimizer.lr": 0.002}
    content = {"recipe": "recipe.yaml", "rungs": [0.5, 1.0], "trials": {"plain": {}, "narrow": keys}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_trial_changes_its_keys_alone(plan_file):
    plan = replace(PLAN, recipe="recipe.yaml", trials={"narrow": {"model.image_dim": 32, "optimizer.lr": 0.002}})
    plain = changed(plan_file, replace(plan, trials={"plain": {}}), "plain")
    narrow = changed(plan_file, plan, "narrow")
    assert narrow == replace(
        plain, model=replace(plain.model, image_dim=32), optimizer=replace(plain.optimizer, lr=0.002)
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.image_width": 64}, "unknown key 'image_width'"),
        ({"modell.image_dim": 64}, "the recipe has no key 'modell.image_dim'; did you mean 'model.image_dim'?"),
        ({"model.image_dim": "wide"}, "image_dim: expected int, found 'wide'"),
        ([1], "expected a mapping of keys to values"),
    ],
)
def test_a_key_that_does_not_exist_is_named(plan_file, changes, said, tmp_path):
    content = yaml.safe_load(plan_file.read_text()) | {"trials": {"x": changes}}
    plan_file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as refused:
        work(plan_file, tmp_path / "runs", deadline=0.0)
    assert str(refused.value).startswith(f"{plan_file}: trials: x: ")
    assert said in str(refused.value)


def test_a_score_that_validation_does_not_measure_is_refused_before_hours_of_training(plan_file, tmp_path):
    content = yaml.safe_load(plan_file.read_text())
    plan_file.write_text(yaml.safe_dump({**content, "score": "CIDEr"}, sort_keys=False))
    with pytest.raises(UserError, match="score CIDEr scores captions, and trial 'plain' has none"):
        work(plan_file, tmp_path / "runs", deadline=0.0)


def test_what_is_done_is_not_done_again_and_the_time_is_kept(plan_file, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(trials, "prepare", lambda recipes, lacking, rung, rows: ran.append((rung, *lacking)))

    def run(trial, rung, out, deadline):
        ran.append((trial, rung))
        return row(trial, rung, {"plain": 0.2, "narrow": 0.3}[trial])

    monkeypatch.setattr(trials, "run", run)
    assert not work(plan_file, tmp_path / "runs", deadline=0.0)
    assert ran == []
    assert work(plan_file, tmp_path / "runs", time.monotonic() + 60)
    first = [(0.5, "plain", "narrow"), ("plain", 0.5), ("narrow", 0.5)]
    assert ran == [*first, (1.0, "narrow"), ("narrow", 1.0)]
    assert [to_dict(found) for found in read_rows(plan_file.with_suffix(".jsonl"))] == [
        json.loads(line) for line in plan_file.with_suffix(".jsonl").read_text().splitlines()
    ]
    assert work(plan_file, tmp_path / "runs", time.monotonic() + 60)
    assert [what for what in ran if len(what) == 2 and isinstance(what[0], str)] == [*first[1:], ("narrow", 1.0)]


def test_a_plan_whose_trials_all_diverged_says_so(plan_file, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "prepare", lambda *_: None)
    monkeypatch.setattr(trials, "run", lambda trial, rung, *_: diverged(trial, rung))
    with pytest.raises(UserError, match=r"plan\.yaml: all trials diverged; give them a lower optimizer.lr"):
        work(plan_file, tmp_path / "runs", time.monotonic() + 60)
    assert [found.kind for found in read_rows(plan_file.with_suffix(".jsonl"))] == ["diverged"] * 2


def prepared_steps(plan_file, folder, monkeypatch, seconds, rows, trial_names=("plain", "narrow"), rung=12.0):
    """Number of steps of each trial, and the trials that were timed."""
    recipes = {
        name: changed(plan_file, replace(PLAN, recipe="recipe.yaml", trials={name: {}}), name) for name in seconds
    }
    timed = []

    def seconds_per_step(recipes):
        timed.extend(recipes)
        return {name: seconds[name] for name in recipes}

    monkeypatch.setattr(trials, "seconds_per_step", seconds_per_step)
    lacking = {name: folder / f"{name} {rung:g}" for name in trial_names}
    prepare(recipes, lacking, rung, rows)
    prepare(recipes, lacking, rung, rows)  # what is there stays
    steps = {name: load_recipe(out.with_name(f"{out.name}.yaml")).schedule.steps for name, out in lacking.items()}
    return steps, timed


def test_a_rung_holds_as_many_steps_on_a_slower_machine(plan_file, tmp_path, monkeypatch):
    seconds = {"plain": 4.0, "narrow": 1.0, "other": 6.0}
    first = prepared_steps(plan_file, tmp_path / "first", monkeypatch, seconds, [row("gone", 1.0, 0.1)])
    assert first == ({"plain": 3, "narrow": 12}, ["plain", "narrow"])
    rows = [row("gone", 1.0, 0.1), row("other", 6.0, 0.2)]  # 2 seconds a step, a third of those of this machine
    slower = prepared_steps(plan_file, tmp_path / "slower", monkeypatch, seconds, rows)
    assert slower == ({"plain": 9, "narrow": 36}, ["plain", "narrow", "other"])


def test_a_run_that_was_prepared_with_other_keys_is_refused(plan_file, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "seconds_per_step", lambda recipes: dict.fromkeys(recipes, 1.0))
    plan = replace(PLAN, recipe="recipe.yaml", trials={"x": {"optimizer.lr": 0.002}})
    prepare({"x": changed(plan_file, plan, "x")}, {"x": tmp_path / "x 3"}, 3.0, [])
    other = {"x": changed(plan_file, replace(plan, trials={"x": {"optimizer.lr": 0.004}}), "x")}
    with pytest.raises(UserError, match=r"x 3\.yaml: is of other keys than those of trial 'x' now"):
        prepare(other, {"x": tmp_path / "x 3"}, 3.0, [])


def test_the_speeds_of_two_machines_are_compared_on_all_trials_that_have_rows(plan_file, tmp_path, monkeypatch):
    seconds = {"plain": 4.0, "narrow": 2.0, "other": 6.0}
    rows = [row("plain", 6.0, 0.2), row("narrow", 3.0, 0.2), row("other", 3.0, 0.2)]  # 2, 1 and 1 seconds a step
    steps, _ = prepared_steps(plan_file, tmp_path / "runs", monkeypatch, seconds, rows, tuple(seconds))
    assert steps == {"plain": 6, "narrow": 12, "other": 4}  # 24 seconds, since two of three take twice as long here


def test_seconds_of_steps_keep_their_ratios_while_the_machine_changes_its_speed(plan_file, monkeypatch):
    """Turn by turn of a machine that is twice as slow in some rounds, and once in the middle of a round."""
    recipe = changed(plan_file, replace(PLAN, recipe="recipe.yaml", trials={"x": {}}), "x")
    clock = {"turn": 0, "now": 0.0}
    slow_turns = {*range(6, 12), *range(16, 20), 25}

    def step(self, batches, num_tokens, number):
        assert number == clock["turn"] // 2 * STEPS_A_TURN + number % STEPS_A_TURN
        speed = 2.0 if clock["turn"] in slow_turns else 1.0
        clock["now"] += speed * (3.0 if clock["turn"] % 2 else 1.0)
        clock["turn"] += number % STEPS_A_TURN == STEPS_A_TURN - 1
        return {}

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(time, "process_time", lambda: clock["now"])
    opened = []
    monkeypatch.setattr(trials, "training_sources", lambda recipe: opened.append(1) or training_sources(recipe))
    found = seconds_per_step({"one": recipe, "thrice": replace(recipe, seed=1)})
    assert found["thrice"] / found["one"] == pytest.approx(3.0)
    assert 1.0 <= found["one"] <= 2.0
    assert len(opened) == 1
    with pytest.raises(UserError, match="trial 'one': data: num_workers 2: the time of workers is not counted"):
        seconds_per_step({"one": replace(recipe, data=replace(recipe.data, num_workers=2))})


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

    def prepare(recipes, lacking, rung, rows):
        for trial, out in lacking.items():
            out.parent.mkdir(parents=True, exist_ok=True)
            save_recipe(recipes[trial], out.with_name(f"{out.name}.yaml"))

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


@pytest.fixture
def training(plan_file, tmp_path, monkeypatch):
    """A prepared trial of 8 steps, and a function that runs it with changes of the recipe."""

    def run_it(trained=train, **changes):
        recipe = load_recipe(plan_file.with_name("recipe.yaml"))
        out = tmp_path / "runs" / "plain 0.5"
        out.parent.mkdir()
        save_recipe(replace(recipe, **changes), out.with_name("plain 0.5.yaml"))

        def pretrain(path, out, deadline):
            recipe = load_recipe(path)
            try:
                trained(recipe, new_checkpoint(recipe, ALONE), out, ALONE, lambda *_: None)
            except UserError:
                return 2
            return 0

        monkeypatch.setattr(trials, "_train", pretrain)
        return trials.run("plain", 0.5, out, time.monotonic() + 60)

    return run_it


def test_a_training_that_diverges_is_a_row_that_says_so(training):
    recipe = tiny_recipe("x.tar")
    hot = replace(recipe.optimizer, name="adamw", lr=1e30)
    found = training(optimizer=hot, schedule=replace(recipe.schedule, steps=40, warmup_steps=0))
    assert (found.kind, found.scores, found.steps) == ("diverged", {}, 40)
    assert found.parameters > 1000


def test_another_failure_of_a_training_still_stops_the_plan(training):
    def fail(recipe, start, out, *_):
        out.mkdir()
        events = [{"step": step, "split": "events", "event": "not finite"} for step in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)]
        (out / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        raise UserError("the disk is full")

    with pytest.raises(UserError, match=r"plain 0\.5: the training ended with exit code 2; its message is above"):
        training(fail)


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
