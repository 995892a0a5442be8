"""`grr-coca study`: what it tells, and what it refuses."""

import json
import re
import signal
from collections import Counter
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import finetuning, real_pairs, tiny_recipe, write_shard
from synthetic_study import pretended_row
from workers_here import work_here

from grr_coca.cli import main
from grr_coca.cli.output import report_stop
from grr_coca.common.errors import Interruption
from grr_coca.train.recipe import save_recipe
from grr_coca_study.commands.study_run import _Progress
from grr_coca_study.ledger import write_digests
from grr_coca_study.plan import Plan, read_plan
from grr_coca_study.rows import ROWS_FOLDER, RowFolder
from grr_coca_study.running import agenda, speed
from grr_coca_study.running.agenda import RemainingWork
from grr_coca_study.running.dry_run import power_line
from grr_coca_study.stages import data_digest

STUDIES = Path(__file__).parents[3] / "studies"
BARE = ", grid: &rates {optimizer.lr: [0.001, 0.003]}", ", grid: *rates", "tuning: {seeds: [9], steps: 2}"
"""What a plan without tuning lacks."""
PLAN = """
arms:
  - {name: baseline_coca, grid: &rates {optimizer.lr: [0.001, 0.003]}}
  - {name: grr_coca, grid: *rates}
baseline: baseline_coca
seeds: [0, 1]
pretrain: emoji.yaml
finetune: [more.yaml]
precision: fp32
muon_precision: fp32
tuning: {seeds: [9], steps: 2}
endpoints: {primary: [pretraining/coca_loss]}
showcase: test
"""


def bare() -> str:
    """The plan with one seed, and without tuning."""
    text = PLAN.replace("[0, 1]", "[0]")
    for part in BARE:
        text = text.replace(part, "")
    return text


@pytest.fixture
def plan(tmp_path):
    """The plan of a study that could be run in seconds."""
    shard = write_shard(tmp_path / "pairs.tar", real_pairs(16))
    recipe = tiny_recipe(shard)
    recipe.data.test["test"] = str(shard)
    save_recipe(recipe, tmp_path / "emoji.yaml")
    save_recipe(finetuning(recipe), tmp_path / "more.yaml")
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--only", "grr_cocoa"], "no arm 'grr_cocoa'; did you mean 'grr_coca'?"),
        (["--only", "grr_cocoa", "--only", "grr_coca"], "no arm 'grr_cocoa'; did you mean 'grr_coca'?"),
    ],
    ids=str,
)
def test_rejects_invalid_flags(refused, plan, flags, named):
    assert named in refused("study", "run", plan, *flags)
    assert not (plan.parent / ROWS_FOLDER).exists()


def test_rejects_a_precision_that_depends_on_the_machine(refused, plan):
    recipe = (plan.parent / "emoji.yaml").read_text()
    (plan.parent / "emoji.yaml").write_text(recipe.replace("precision: fp32", "precision: auto"))
    plan.write_text(PLAN.replace("precision: fp32\n", "", 1))
    assert "precision: 'auto' depends on the machine" in refused("study", "run", plan)


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=str)
@pytest.mark.parametrize("flag", ["--out", "--runs"])
def test_folder_that_cannot_be_written_to_is_named(refused, plan, flag, dry_run):
    file = plan.parent / "file"
    file.write_text("where a folder is to be")
    message = refused("study", "run", plan, flag, file / "folder", *dry_run)
    assert f"folder: cannot be written to ({file} is not a folder); pass another {flag}" in message


@pytest.mark.ci
def test_dry_run_reports_runs_hours_and_disk_and_writes_nothing(plan, capsys, monkeypatch):
    for name, value in {"SECONDS": 0.1, "WARM_UP": 1, "MIN_STEPS": 1}.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr("grr_coca.cli.progress.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(BaseProcess, "start", lambda _: pytest.fail("another process would take as much memory"))
    recipe = (plan.parent / "emoji.yaml").read_text()
    (plan.parent / "emoji.yaml").write_text(re.sub("num_workers: .*", "num_workers: 2", recipe))
    before = sorted(plan.parent.rglob("*"))
    assert main(["study", "run", str(plan), "--dry-run", "--jobs", "2"]) == 0
    output, progress = capsys.readouterr()
    assert re.findall(r"speed: (\d+)%", progress)[:4] == ["0", "25", "50", "75"]
    for arm in ("baseline_coca", "grr_coca"):
        (line,) = (line for line in output.splitlines() if line.startswith(arm))
        assert line.split()[1:3] == ["2", "4"], "two trials, two seeds of two stages"
    assert re.search(r"a step of emoji: \d+\.\d\d s \(baseline_coca, one core\)", output)
    assert re.search(r"in all \d+\.\d core-hours: \d+\.\d hours with --jobs 2", output)
    assert re.search(r"up to \d+\.\d GB in .*runs, where \d+ GB are free", output)
    assert "power: with 2 seeds and 1 primary endpoint, no endpoint is called better or worse: this " in output
    assert "this requires at least 5 seeds" in output
    assert "TOO SMALL" not in output
    assert sorted(plan.parent.rglob("*")) == before


def test_dry_run_reports_detectable_effects():
    plan = replace(read_plan(STUDIES / "gpu" / "plan.yaml", Plan), seeds=tuple(range(8)))
    assert power_line(plan) == [
        "power: with 8 seeds and 1 primary endpoint, a true change of 1.2 standard deviations over seeds is called "
        "better or worse in four studies of five"
    ]
    assert power_line(replace(plan, seeds=())) == []


def test_status_counts_tried_points_of_each_grid(plan, capsys):
    read = read_plan(plan, Plan)
    tasks = RemainingWork(read, lambda *names: plan.parent / "runs").open_tasks()
    assert [(task.arm, task.is_trial) for task in tasks] == [("baseline_coca", True)] * 2 + [("grr_coca", True)] * 2
    begun = RemainingWork(read, lambda *names: plan.parent / "runs", map(pretended_row, tasks[:3]))
    for task in tasks[:3]:
        RowFolder(plan.parent).publish(task.name, pretended_row(task))
    write_digests(plan.parent, begun.digests)
    assert main(["study", "status", str(plan.parent)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert "tried for baseline_coca, emoji: 2 of 2 points and seeds" in output
    assert "tried for grr_coca, emoji: 1 of 2 points and seeds" in output
    assert "best for baseline_coca, emoji: lr 0.001" in output


@pytest.mark.parametrize(
    ("trials", "runs", "message"),
    [(3, 1, "3 trials and 1 run"), (1, 0, "1 trial"), (0, 1000, "1,000 runs"), (0, 0, "nothing")],
)
def test_remaining_work_is_described(capsys, trials, runs, message):
    work = Counter({("trial", "grr_coca", "emoji"): trials, ("run", "grr_coca", "emoji"): runs})
    _Progress(None, {}, lambda missing: Counter(), Counter()).remaining(SimpleNamespace(missing_runs=lambda: work))
    assert capsys.readouterr().err == f"{message} to do\n"


def test_stop_signal_sets_the_exit_code(capsys):
    assert report_stop(Interruption(signal.SIGTERM, "stop requested")) == 143
    assert capsys.readouterr().err == "SIGTERM: progress is saved; run the same command to continue\n"


@pytest.mark.ci
def test_study_runs_and_its_status_is_reported(plan, capfd, monkeypatch):
    work_here(monkeypatch)
    plan.write_text(bare())
    hashed = []
    monkeypatch.setattr(agenda, "data_digest", lambda recipe: hashed.append(recipe) or data_digest(recipe))
    assert main(["study", "run", str(plan), "--only", "grr_coca"]) == 0
    assert len(hashed) == 2, "the data of each stage, which may be terabytes, once"
    output = capfd.readouterr().err
    assert output.startswith("2 runs to do\n")
    assert "grr_coca, seed 0, more: CoCa loss on val" in output
    assert main(["study", "status", str(plan.parent)]) == 0
    output = capfd.readouterr().out.splitlines()
    assert output[0].split()[:3] == ["arm", "emoji", "more"]
    assert output[1].split() == ["baseline_coca", "0", "0"]
    assert output[2].split() == ["grr_coca", "1", "1"]
    rows = [json.loads(path.read_text()) for path in sorted((plan.parent / ROWS_FOLDER).iterdir())]
    assert [row["stage"] for row in rows] == ["emoji", "more"]
    assert plan.read_text().startswith("\narms:"), "the plan is as the person wrote it"
