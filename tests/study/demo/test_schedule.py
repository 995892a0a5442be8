"""How long a comparison takes on a machine, and the schedule that is chosen for a time."""

from dataclasses import replace

import pytest
from workers_here import work_here

from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca_study.demo import (
    _OTHER_SECONDS,
    _RESERVE,
    Schedule,
    demo_recipes,
    load_demo,
    longest_schedule,
    timed_schedules,
)
from grr_coca_study.running import speed
from grr_coca_study.running.speed import TrainingSpeed

SCHEDULES = [Schedule(300, 4.0, 0.1), Schedule(600, 7.0, 0.2), Schedule(900, 10.0, None)]


@pytest.mark.parametrize(("minutes", "steps"), [(4.0, 300), (9.9, 600), (10.0, 900), (1e6, 900)])
def test_longest_schedule_that_fits_is_chosen(minutes, steps):
    assert longest_schedule(SCHEDULES, minutes).steps == steps


def test_too_little_time_names_the_minimum():
    with pytest.raises(UserError, match=r"--minutes 3: the shortest schedule, 300 steps, .* pass --minutes 5"):
        longest_schedule(SCHEDULES, 3.0)


def test_forecast_counts_all_steps_and_evaluated_pairs(write_plan):
    plan = load_demo(write_plan(schedules={100: 0.5, 200: None}))
    short, long = timed_schedules(
        plan, [TrainingSpeed(0.1, 0.003, 0.01), TrainingSpeed(0.2, 0.001, 0.02)], seconds_spent=7.0
    )
    # Two domains of 3 steps; of pretraining one validation of 24 pairs and 2 tests of 16, of each domain one and one.
    evaluated = (24 + 2 * 16) + 2 * (24 + 16)
    besides = 7 + _OTHER_SECONDS + 3 * 24 * 0.003 + evaluated * 0.02
    assert 60 * short.minutes == pytest.approx(besides + _RESERVE * 0.2 * (100 + 6))
    assert 60 * (long.minutes - short.minutes) == pytest.approx(_RESERVE * 0.2 * 100)
    assert (short.reached, long.reached) == (0.5, None)


def test_completed_steps_keep_their_fraction_of_validations(write_plan):
    plan = load_demo(write_plan())
    recipe = demo_recipes(plan)["pictograms"]
    longer = demo_recipes(replace(plan, steps=60))["pictograms"]
    assert longer.schedule == replace(recipe.schedule, steps=60)
    assert longer.evaluation.interval / 60 == pytest.approx(recipe.evaluation.interval / recipe.schedule.steps, rel=0.1)
    assert demo_recipes(replace(plan, steps=60))["health"] == demo_recipes(plan)["health"], (
        "other stages stay as they are"
    )


@pytest.mark.ci  # it trains and evaluates both models to measure their speed
def test_dry_run_reports_used_files_and_writes_nothing(write_plan, tmp_path, capfd, monkeypatch):
    work_here(monkeypatch)
    for name, value in {"SECONDS": 0.1, "WARM_UP": 1, "MIN_STEPS": 1}.items():
        monkeypatch.setattr(speed, name, value)
    plan = write_plan(schedules={3: 0.25, 10**9: 0.9})
    assert main(["demo", str(plan), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    output = capfd.readouterr().out
    assert "s, in fp32, with Muon in " in output
    (taken,) = (line.split() for line in output.splitlines() if line.startswith("→"))
    assert taken[1] == "3"
    assert 0 < float(taken[3]) <= 10
    assert not (tmp_path / "out").exists()
