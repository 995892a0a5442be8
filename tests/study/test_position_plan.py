"""The study of positions, on a small build of its corpus and with few steps."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from grr_coca.cli import main
from grr_coca.study.ledger import Ledger
from grr_coca.study.plan import Plan, read_plan
from grr_coca.study.report.numbers import factorial_corners, study_results
from grr_coca.study.running import expectation as pace
from grr_coca.study.running.agenda import Agenda, StudyPart
from grr_coca.study.running.stage import run_stage
from grr_coca.study.stages import check_recipes, require_precisions
from support import CPU

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "build_datasets"))

import scenes

POSITION = Path(__file__).parents[2] / "studies" / "position"


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Path:
    """The plan as it comes, but for a recipe of few steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scenes.build(lambda *_: None, tmp_path / "cache" / "grr-coca" / "scenes", scenes.SceneCounts(4, 4, 4, 1))
    shutil.copy(POSITION / "plan.yaml", tmp_path)
    recipe = yaml.safe_load((POSITION / "scenes.yaml").read_text())
    recipe["schedule"] = {"steps": 2, "warmup_steps": 1}
    recipe["data"]["batch_size"] = recipe["evaluation"]["batch_size"] = 16
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "plan.yaml"


@pytest.mark.ci
def test_both_arms_of_the_question_run_and_are_compared(plan):
    found = read_plan(plan, Plan)
    check_recipes(found, plan)
    require_precisions(found, plan)
    part = StudyPart(("baseline_coca", "baseline_rope_2d"))
    agenda = Agenda(found, part, lambda arm, seed, stage, digest: plan.parent / arm, ())
    rows = [run_stage(task, CPU, lambda _: None) for task in agenda.open_tasks() if task.seed == 0]
    assert tuple(row.arm for row in rows) == part.arms
    assert rows[0].metrics["test"]["num_pairs"] == 32
    results = study_results(found, Ledger(tuple(rows), (), (), ()))
    (main_arm, *_) = results.arms
    assert main_arm.arm == "baseline_rope_2d"
    assert all(result.effect is not None for result in main_arm.endpoints if result.is_primary)


def test_the_arms_are_a_factorial_of_rope_and_the_rest():
    corners = factorial_corners(read_plan(POSITION / "plan.yaml", Plan))
    assert {tuple(sorted(cell)): arm for cell, arm in corners.items()} == {
        (): "baseline_coca",
        ("RoPE",): "baseline_rope_2d",
        ("RMSNorm + GEGLU",): "baseline_rms_geglu",
        ("RMSNorm + GEGLU", "RoPE"): "grr_coca",
    }


@pytest.mark.ci
def test_a_study_without_fine_tuning_can_be_tried_dry(plan, capsys, monkeypatch):
    for name, value in {"SECONDS": 0.1, "WARM_UP": 1, "MIN_STEPS": 1}.items():
        monkeypatch.setattr(pace, name, value)
    assert main(["study", "run", str(plan), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^grr_coca +0 +8 ", said, re.MULTILINE), "no trials, eight runs"


def test_without_the_corpus_the_command_that_builds_it_is_named(plan, capsys):
    shutil.rmtree(plan.parent / "cache" / "grr-coca" / "scenes")
    assert main(["study", "run", str(plan), "--dry-run"]) == 2
    assert "`python scripts/build_datasets scenes` builds it there" in capsys.readouterr().err
