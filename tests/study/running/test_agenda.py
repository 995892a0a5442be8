"""The agenda: what a study lacks, what can start now, and which settings its trials choose."""

from dataclasses import replace

from grr_coca.study.running.agenda import FINISHED
from grr_coca.study.running.stage import run_stage
from grr_coca.study.stages import stage_recipe
from support import CPU
from synthetic_study import PRETRAINING, TUNED, diverged, pretended_row

PAIR = ("baseline_coca", "grr_coca")


def test_a_trial_whose_model_was_lost_counts_as_work_left(agenda_of):
    agenda = agenda_of("baseline_coca", **TUNED)
    trials = agenda.open_tasks()
    for task in trials:
        agenda.add(pretended_row(task))
    (lost,) = (task for task in agenda.open_tasks() if task.kind == "trial")
    assert lost.stage == "pictograms", "it is trained again"
    assert agenda.lacking()["trial", "baseline_coca", "pictograms"] == 1
    lost.folder.mkdir(parents=True)
    (lost.folder / FINISHED).touch()
    assert agenda.lacking()["trial", "baseline_coca", "pictograms"] == 0


def test_settings_that_are_shared_are_those_that_are_best_on_average(agenda_of):
    """One arm is tried at each setting as another is, and an arm that is not tried has the settings of both."""
    tuning = {"seed": 9, "arms": ["baseline_coca", "grr_coca"], "pretrain": {"optimizer.lr": [0.1, 0.2, 0.3]}}
    arms = ["baseline_coca", "grr_coca", "coca"]
    agenda = agenda_of(*arms, arms=arms, seeds=[0], finetune=[], endpoints=PRETRAINING, tuning=tuning)
    losses = {"baseline_coca": [1.0, 2.0, 8.0], "grr_coca": [9.0, 2.0, 1.0]}
    trials = agenda.open_tasks()
    assert [task.arm for task in trials] == ["baseline_coca"] * 3 + ["grr_coca"] * 3
    assert agenda.lacking()["run", "coca", "pictograms"] == 1
    for task, loss in zip(trials, losses["baseline_coca"] + losses["grr_coca"], strict=True):
        assert agenda.lacking_choices() == [], "each arm waits for the other"
        row = replace(pretended_row(task), metrics={"val": {"coca_loss": loss}})
        agenda.add(row)
        assert agenda.spent_folders(row) == ([] if task != trials[-1] else [trial.folder for trial in trials])
    assert [(row.arm, row.settings["optimizer.lr"]) for row in agenda.lacking_choices()] == [
        ("baseline_coca", 0.2),
        ("grr_coca", 0.2),
    ]
    assert {task.arm: task.settings["optimizer.lr"] for task in agenda.open_tasks()} == dict.fromkeys(arms, 0.2)
    assert agenda.digests.recipes.keys() == set(arms)


def test_a_trial_with_a_loss_of_zero_is_the_best(agenda_of):
    tuning = {"seed": 9, "pretrain": {"optimizer.lr": [0.1, 0.2]}, "score": "contrastive_loss"}
    agenda = agenda_of("grr_coca", seeds=[0], finetune=[], endpoints=PRETRAINING, tuning=tuning)
    for task, loss in zip(agenda.open_tasks(), (1e-3, 0.0), strict=True):
        agenda.add(replace(pretended_row(task), metrics={"val": {"contrastive_loss": loss}}))
    assert [row.settings for row in agenda.lacking_choices()] == [{"optimizer.lr": 0.2}]


def test_recipes_are_not_computed_again_with_every_row(agenda_of, monkeypatch):
    """The process that feeds the workers has no core of its own."""
    agenda = agenda_of(*PAIR, **TUNED)
    asked: list[str] = []

    def counted(*arguments, **named):
        asked.append(f"{arguments} {named}")
        return stage_recipe(*arguments, **named)

    monkeypatch.setattr("grr_coca.study.running.agenda.stage_recipe", counted)
    while tasks := agenda.open_tasks():
        tasks[0].folder.mkdir(parents=True)
        (tasks[0].folder / FINISHED).touch()
        agenda.add(pretended_row(tasks[0]))
        assert agenda.digests.recipes.keys() <= set(PAIR)
    assert not agenda.lacking()
    assert len(asked) == len(set(asked)) == 2 * (4 + 2)


def test_a_trial_that_diverged_is_the_worst_and_no_error(agenda_of, monkeypatch):
    monkeypatch.setattr("grr_coca.study.running.stage.train", diverged)
    agenda = agenda_of("grr_coca", **TUNED)
    first, second = agenda.open_tasks()
    row = run_stage(first, CPU, lambda _: None)
    assert (row.metrics, row.values) == ({}, {})
    agenda.add(row)
    fine = replace(
        row, settings=second.settings, recipe_digest=second.recipe_digest, metrics={"val": {"coca_loss": 9.0}}
    )
    agenda.add(fine)
    assert [choice.settings for choice in agenda.lacking_choices()] == [second.settings]


def test_shards_do_each_run_once(agenda_of):
    names = []
    for shard in (1, 2, 3):
        agenda = agenda_of(*PAIR, shard=shard, num_shards=3)
        names += [task.name for task in agenda.open_tasks()]
        assert sum(agenda.lacking().values()) == 3 * len(agenda.open_tasks())
    assert sorted(names) == sorted(f"{arm}, pictograms, seed {seed}" for arm in PAIR for seed in (0, 1))
