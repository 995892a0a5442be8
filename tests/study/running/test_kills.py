"""A study whose jobs are killed again and again ends as one that nobody disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_study import PRETRAINING, arm

from grr_coca.cli import main
from grr_coca.train.recipe import CheckpointRecipe, load_recipe, save_recipe

ALL_RATES = [0.001, 0.003, 0.01]
STEPS = 40


def start(plan: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "grr_coca", "study", "run", str(plan), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def seconds_to_a_row(plan: Path, out: Path) -> float:
    """Run a study to its end. Returns the seconds after which it had its first row, most of which it took to start."""
    began = time.monotonic()
    job = start(plan, out)
    try:
        while not list((out / "rows").glob("[!.]*.json")):
            assert job.poll() is None
            time.sleep(0.1)
        first = time.monotonic() - began
        assert job.wait(timeout=1200) == 0
    finally:
        job.kill()
        job.wait()
    return first


def workers_of(job: subprocess.Popen) -> list[int]:
    """The processes of a job that train."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def kill(job: subprocess.Popen, chance: random.Random) -> None:
    """Kill a job, or one of the processes that it has started, which ends the job."""
    victims = [job.pid, *workers_of(job)]
    os.kill(chance.choice(victims), signal.SIGKILL)
    job.wait(timeout=120)


def without_times(results: dict) -> dict:
    return results | {"costs": [{**cost, "seconds": None} for cost in results["costs"]]}


def rows_by_name(out: Path) -> dict[str, dict]:
    rows = {path.name: json.loads(path.read_text()) for path in (out / "rows").glob("*.json")}
    return {name: {**row, "seconds": None} for name, row in rows.items()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's list of processes")
@pytest.mark.parametrize(
    ("num_rates", "seeds", "num_kills"),
    [
        pytest.param(2, [0], 2, marks=pytest.mark.ci),
        pytest.param(3, [0, 1], 20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_killed_jobs_of_a_grid_give_the_same_report(write_study, tmp_path, num_rates, seeds, num_kills):
    grid = {"optimizer.lr": ALL_RATES[:num_rates]}
    arms = [arm(name, grid=grid) for name in ("baseline_coca", "grr_coca")]
    plan = write_study(arms=arms, seeds=[9], tuning={"seeds": seeds}, finetune=[], endpoints=PRETRAINING, steps=STEPS)
    recipe = load_recipe(tmp_path / "pictograms.yaml")
    save_recipe(replace(recipe, checkpoints=CheckpointRecipe(minutes=0.01)), tmp_path / "pictograms.yaml")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    longest_life = seconds_to_a_row(plan, undisturbed)  # so the study is not at its end before the last kill

    chance, killed = random.Random(num_kills), 0
    jobs, begun = [start(plan, out) for _ in range(2)], [time.monotonic()] * 2
    lives = [chance.uniform(0.0, longest_life) for _ in jobs]
    seen: dict[str, bytes] = {}
    try:
        while any(job.poll() is None for job in jobs):
            for number, job in enumerate(jobs):
                if killed == num_kills or job.poll() is not None or time.monotonic() - begun[number] < lives[number]:
                    continue
                kill(job, chance)
                killed += 1
                jobs[number], begun[number] = start(plan, out), time.monotonic()
                lives[number] = chance.uniform(0.0, longest_life)
            for path in (out / "rows").glob("[!.]*.json"):
                assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes(), "a row is never written over"
            time.sleep(0.05)
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    assert killed == num_kills, "the study was long enough"
    assert [job.returncode for job in jobs] == [0, 0]
    rows = rows_by_name(out)
    assert len(rows) == 2 * (num_rates * len(seeds) + 1)
    assert rows == rows_by_name(undisturbed), "bit for bit, with the seconds of each alone different"
    assert sorted(path.name for path in (out / "rows").iterdir()) == sorted(rows), "no claim, and nothing half-written"
    assert list((out / "runs").rglob("*.safetensors")) == []
    found = []
    for folder in (undisturbed, out):
        assert main(["study", "report", str(folder)]) == 0
        found.append(without_times(json.loads((folder / "results.json").read_text())))
    assert found[0] == found[1]
    assert found[0]["num_rows"] == 2
