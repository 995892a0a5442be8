"""The agenda: what a study lacks, what can start now, and which settings its trials choose."""

from dataclasses import replace

import pytest
from synthetic_study import GRIDS, PRETRAINING, RATES, arm, pretended_row

from grr_coca_study.running.agenda import FINISHED, RemainingWork, Task


def complete(agenda: RemainingWork, task: Task, loss: float = 1.0) -> None:
    """Pretend that a task was trained."""
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / FINISHED).touch()
    row = pretended_row(task)
    agenda.add(replace(row, metrics={**row.metrics, "val": {"coca_loss": loss}}))


def test_shared_settings_are_best_on_average(agenda_of):
    """One arm is tried at each setting as another is, and an arm that is not tried has the settings of both."""
    grid = {"optimizer.lr": [0.1, 0.2, 0.3]}
    arms = [arm("baseline_coca", grid=grid), arm("grr_coca", grid=grid), "coca"]
    names, tuning = ("baseline_coca", "grr_coca", "coca"), {"seeds": [9], "shared": True}
    agenda = agenda_of(*names, arms=arms, seeds=[0], finetune=[], endpoints=PRETRAINING, tuning=tuning)
    losses = {"baseline_coca": [1.0, 2.0, 8.0], "grr_coca": [9.0, 2.0, 1.0]}
    trials = agenda.open_tasks()
    assert [task.arm for task in trials] == ["baseline_coca"] * 3 + ["grr_coca"] * 3
    assert agenda.missing_runs()["run", "coca", "pictograms"] == 1
    for task, loss in zip(trials, losses["baseline_coca"] + losses["grr_coca"], strict=True):
        assert agenda.choices() == {}, "each arm waits for the other"
        row = replace(pretended_row(task), metrics={"val": {"coca_loss": loss}})
        agenda.add(row)
    assert {*agenda.disposable_run_folders()} == {trial.folder for trial in trials}
    assert agenda.choices() == {(name, "pictograms"): {"optimizer.lr": 0.2} for name in names}
    assert {task.arm: task.settings["optimizer.lr"] for task in agenda.open_tasks()} == dict.fromkeys(names, 0.2)
    assert agenda.digests.recipes.keys() == set(names)


@pytest.mark.parametrize("losses", [(1e-3, 0.0), (None, 9.0)], ids=str)
def test_zero_loss_is_best_and_divergence_is_worst(agenda_of, losses):
    agenda = agenda_of("grr_coca", arms=GRIDS, seeds=[0], finetune=[], endpoints=PRETRAINING, tuning={"seeds": [9]})
    for task, loss in zip(agenda.open_tasks(), losses, strict=True):
        ended = {"kind": "diverged", "metrics": {}} if loss is None else {"metrics": {"val": {"coca_loss": loss}}}
        agenda.add(replace(pretended_row(task), **ended))
    assert agenda.choices() == {("grr_coca", "pictograms"): {"optimizer.lr": 0.01}}


def test_fine_tuning_grid_starts_from_one_model(agenda_of):
    arms = ["baseline_coca", arm("grr_coca", finetune_grid=RATES)]
    agenda = agenda_of("grr_coca", arms=arms, finetune=["health.yaml"], endpoints=PRETRAINING, tuning={"seeds": [9]})
    (start,) = agenda.open_tasks()[:1]
    assert (start.seed, start.stage, start.settings) == (9, "pictograms", {})
    complete(agenda, start)
    trials = [task for task in agenda.open_tasks() if task.is_trial]
    assert [task.settings["optimizer.lr"] for task in trials] == [0.001, 0.01]
    for task, loss in zip(trials, (2.0, 1.0), strict=True):
        complete(agenda, task, loss)
    assert agenda.choices() == {("grr_coca", "health"): {"optimizer.lr": 0.01}}
    assert agenda.digests.trials["grr_coca"].keys() == {"pictograms", "health"}, "the row of the start counts"
