"""A study is run: tuned, trained, measured, and gone on with, each thing once."""

import errno
import json
import shutil
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from grr_coca.cli.study import print_status
from grr_coca.common.errors import UserError
from grr_coca.study.claims import Claim
from grr_coca.study.ledger import Ledger, read_digests
from grr_coca.study.ledger import read_ledger as read_ledger_of
from grr_coca.study.plan import Plan, plan_of_folder, read_plan
from grr_coca.study.rows import LedgerRow, RowFolder
from grr_coca.study.running import run as running
from grr_coca.study.running.agenda import FINISHED, Agenda, Task
from grr_coca.study.running.run import Place, Study, Watch, write_plan
from grr_coca.study.running.stage import run_stage
from grr_coca.study.thumbnails import thumbnail_path
from grr_coca.train.loop import train
from support import CPU, real_pairs, warnings_of, write_shard
from synthetic_study import GRIDS, PRETRAINING, TUNED, arm, diverged, pretended_row
from workers_here import WorkersHere

ONE_SEED = {"seeds": [0], "finetune": [], "endpoints": PRETRAINING}


class Here(WorkersHere):
    """Stands in for the processes: does a task at once, in this one."""

    def __init__(self, stop_after: int = 1000) -> None:
        super().__init__()
        self.left = stop_after
        self.done: list[str] = []

    def submit(self, function, task: Task, claim: Claim, seconds: float) -> Future:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.done.append(task.title)
        return super().submit(self.outcome, task, claim)

    def outcome(self, task: Task, claim: Claim) -> LedgerRow:
        return run_stage(task, CPU, lambda _: None)


class Pretending(Here):
    """Trains nothing: for what depends on the order of rows and files alone."""

    def outcome(self, task: Task, claim: Claim) -> LedgerRow:
        task.folder.mkdir(parents=True)
        (task.folder / FINISHED).touch()
        return pretended_row(task)


class Notes(Watch):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def run(path, out, workers=None, keeps_models=False, arms=None, watch=None) -> Here:
    plan, workers = read_plan(path, Plan), workers or Here()
    place = Place(out=out, runs=out / "runs", keeps_models=keeps_models)
    Study(plan, place, watch or Watch(), arms).run(workers)
    return workers


def read_ledger(out) -> Ledger:
    return read_ledger_of(out, plan_of_folder(out))


def rows_of(out) -> list[LedgerRow]:
    return RowFolder(out).new_rows()


def test_a_study_is_tuned_and_run_and_goes_on_where_it_was_stopped(write_study, tmp_path):
    path, out, arms = write_study(**TUNED), tmp_path / "out", ["grr_coca"]
    with pytest.raises(KeyboardInterrupt):
        run(path, out, Here(stop_after=3), arms=arms)
    first = read_ledger(out)
    assert [len(rows) for rows in (first.tried, first.chosen, first.rows)] == [3, 1, 0]
    assert list(out.rglob(".*claim*")) != [], "those of the run that was stopped"
    assert len(run(path, out, arms=arms).done) == 2 + 2 + 2 - 3, "nothing is done twice"
    ledger = read_ledger(out)
    assert ledger.notes == ()
    assert [(row.arm, row.stage) for row in ledger.rows] == [("grr_coca", "pictograms"), ("grr_coca", "health")]
    assert [len(rows) for rows in (ledger.tried, ledger.chosen)] == [4, 2]
    for row in ledger.rows:
        trials = [trial for trial in ledger.tried if trial.stage == row.stage]
        scores = {trial.settings["optimizer.lr"]: trial.metrics["val"]["coca_loss"] for trial in trials}
        assert set(scores) == {0.001, 0.01}
        assert row.settings["optimizer.lr"] == min(scores, key=scores.__getitem__)
        assert row.settings == ledger.chosen[row.arm, row.stage]
    assert {row.steps for row in ledger.tried if row.stage == "pictograms"} == {2}
    assert {tuple(row.metrics) for row in ledger.tried} == {("val",)}, "test splits are unseen"
    assert list(out.rglob(".*claim*")) == []
    assert list((out / "runs").rglob("*.safetensors")) == [], "models that were measured are gone"
    assert run(path, out, arms=arms).done == []
    assert_a_row_says_what_was_measured(ledger.rows[0])
    kept = assert_pictures_are_there(out, ledger.rows)
    kept.unlink()
    assert run(path, out, arms=arms).done == []
    assert kept.exists(), "what is missing is put there when the study goes on"

    more = [arm("baseline_coca"), {**TUNED["arms"][1], "finetune_grid": {"optimizer.lr": [0.001, 0.01, 0.1]}}]
    done = run(write_study(**{**TUNED, "arms": more}), out, arms=arms).done
    assert len(done) == 2, "the model that trials start from is made again, and the new trial"
    assert read_digests(out).recipes["grr_coca"].keys() == {"pictograms", "health"}


def assert_pictures_are_there(out: Path, rows: Iterable[LedgerRow]) -> Path:
    for row in rows:
        pictures = {thumbnail_path(out, row.stage, example.image) for example in row.captions}
        assert len(pictures) == {"pictograms": 6, "health": 2}[row.stage]
        assert pictures == set((out / "showcase" / row.stage).iterdir())
    for picture in pictures:
        with Image.open(picture) as image:
            assert (image.format, image.size) == ("WEBP", (64, 64))
    return picture


def assert_a_row_says_what_was_measured(row: LedgerRow) -> None:
    assert set(row.metrics) == {"val", "test", "test_style"}
    assert {"contrastive_loss", "contrastive_loss_refitted", "perplexity", "coca_loss", "R@1", "CIDEr-D"} <= set(
        row.metrics["test"]
    )
    on_val = row.metrics["val"]
    assert on_val["contrastive_loss_refitted"] <= on_val["contrastive_loss"] + 1e-6
    assert set(row.values) == {"test", "test_style"}
    values = row.values["test"]
    assert {name: len(numbers) for name, numbers in values.items()} == {
        "contrastive_batches": 2,
        "contrastive_batches_refitted": 2,
        "nll": 16,
        "tokens": 16,
        "rank": 16,
        "cider_d": 16,
    }
    metrics = row.metrics["test"]
    assert sum(values["contrastive_batches"]) / 2 == pytest.approx(metrics["contrastive_loss"], abs=1e-4)
    assert sum(values["nll"]) / sum(values["tokens"]) == pytest.approx(metrics["captioning_loss"], abs=1e-4)
    assert sum(rank == 0 for rank in values["rank"]) / 16 == metrics["R@1"]
    assert [point.step for point in row.curve] == [6]
    assert set(row.curve[0].train) == {"contrastive", "captioning"}
    assert len(row.captions) == 6
    assert row.precision == "fp32"
    assert row.seconds > 0
    assert row.parameters > row.image_encoder_parameters > 0
    assert row.training_flops is not None
    assert row.training_flops > 0


def test_a_model_that_was_lost_is_trained_again_and_its_row_stays(write_study, tmp_path):
    path, out = write_study(seeds=[0], finetune=["health.yaml"]), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(path, out, Pretending(stop_after=1))
    shutil.rmtree(out / "runs")
    agenda = Agenda(read_plan(path, Plan), lambda *_: tmp_path / "nowhere", read_ledger(out).rows)
    assert agenda.lacking().total() == 4, "it counts, so that no more than all is done"
    assert run(path, out, Pretending()).done == [
        "baseline_coca, pictograms, seed 0",
        "baseline_coca, health, seed 0",
        "grr_coca, pictograms, seed 0",
        "grr_coca, health, seed 0",
    ]
    assert len(read_ledger(out).rows) == 4
    assert read_ledger(out).notes == ()


def test_a_trial_that_is_done_again_does_not_outvote_its_row(write_study, tmp_path):
    class Worse(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            metrics = {"val": {"coca_loss": 9.0}, "test": {"CIDEr-D": 1.0}}
            return replace(super().outcome(task, claim), metrics=metrics)

    path, out, arms = write_study(**TUNED), tmp_path / "out", ["grr_coca"]
    with pytest.raises(KeyboardInterrupt):
        run(path, out, Pretending(stop_after=2), arms=arms)
    chosen = read_ledger(out).chosen
    assert len(chosen) == 1
    shutil.rmtree(out / "runs")
    assert len(run(path, out, Worse(), arms=arms).done) == 1 + 2 + 2, "the start once more, two trials, two runs"
    assert read_ledger(out).chosen.items() >= chosen.items()
    assert len(rows_of(out)) == 2 + 2 + 2


def test_data_that_were_changed_begin_every_run_anew(write_study, tmp_path):
    path, out, arms = write_study(seeds=[0], finetune=["health.yaml"]), tmp_path / "out", ["grr_coca"]
    run(path, out, Pretending(), keeps_models=True, arms=arms)
    write_shard(tmp_path / "data" / "pictograms-train.tar", real_pairs(30))
    both = ["grr_coca, pictograms, seed 0", "grr_coca, health, seed 0"]
    assert run(path, out, Pretending(), arms=arms).done == both, "its data are the same, its start is not"
    ledger = read_ledger(out)
    assert [row.stage for row in ledger.rows] == ["pictograms", "health"]
    faults = {note.split(": ")[2].split(" (")[0] for note in ledger.notes}
    assert faults == {"other data", "other data of pretraining"}
    assert run(path, out, Pretending(), arms=arms).done == []


def test_arms_that_wait_for_the_settings_of_others_say_so(write_study, tmp_path):
    arms = [TUNED["arms"][0], "grr_coca"]
    path = write_study(**{**TUNED, "arms": arms, "tuning": {**TUNED["tuning"], "shared": True}})
    out, said = tmp_path / "out", "2 runs wait for settings that other arms are still tuning"
    with pytest.raises(UserError, match=said):
        run(path, out, Pretending(), arms=["grr_coca"])
    run(path, out, Pretending(), arms=["baseline_coca"])
    assert len(run(path, out, Pretending(), arms=["grr_coca"]).done) == 2


def test_jobs_that_run_together_do_each_run_once(write_study, tmp_path):
    """Another job begins when this one has claimed its first run, and does all that it can."""
    path, out, others, told = write_study(**TUNED), tmp_path / "out", Pretending(), Notes()

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    class Together(Pretending):
        def submit(self, function, task: Task, *rest):
            if not self.done:
                self.done.append("")
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(running.time, "sleep", interrupted)  # it would wait for the run that this one has
                    with pytest.raises(KeyboardInterrupt):
                        run(path, out, others, watch=told)
                self.done.pop()
            return super().submit(function, task, *rest)

    mine = run(path, out, Together()).done
    assert told.told[-1] == "other processes do all that is left; this one waits, in case one of them dies"
    assert not {*mine} & {*others.done}
    assert len({*mine, *others.done}) == len(mine) + len(others.done) == 2 * (2 + 2 + 2)
    assert read_digests(out).recipes.keys() == {"baseline_coca", "grr_coca"}
    assert [len(rows) for rows in (read_ledger(out).rows, read_ledger(out).notes)] == [4, 0]


def test_rows_of_machines_that_share_no_folder_are_a_whole_study_together(write_study, tmp_path):
    path, both = write_study(**TUNED), tmp_path / "both"
    for name in ("baseline_coca", "grr_coca"):
        run(path, tmp_path / name, Pretending(), arms=[name])
        shutil.copytree(tmp_path / name / "rows", both / "rows", dirs_exist_ok=True)
    assert run(path, both, Pretending()).done == []
    ledger = read_ledger(both)
    assert (len(ledger.rows), len(ledger.tried), len(ledger.chosen), ledger.notes) == (4, 8, 4, ())


def test_half_a_row_is_told_and_its_run_repeated_and_damaged_digests_are_written_again(write_study, tmp_path):
    path, out, watch = write_study(**ONE_SEED), tmp_path / "out", Notes()
    run(path, out, Pretending())
    half, whole = sorted((out / "rows").iterdir())[1], (out / "digests.json").read_text()
    half.write_text(half.read_text()[:-20])
    (out / "digests.json").write_text(whole[:-20])
    assert run(path, out, Pretending(), watch=watch).done == ["grr_coca, pictograms, seed 0"]
    assert watch.told[0].startswith(f"{half.name}: is not a row and does not count")
    assert len(read_ledger(out).rows) == 2
    assert (out / "digests.json").read_text() == whole


@pytest.mark.parametrize("ends_with_error", [False, True])
def test_a_run_that_was_taken_over_is_left_to_the_other_and_has_one_row(write_study, tmp_path, ends_with_error):
    """The process slept, and another one has taken its run over and ended it, in the same folder. Either both have
    measured it, or this one finds no model there."""
    path, out, watch = write_study(**ONE_SEED), tmp_path / "out", Notes()

    class Slept(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            if len(self.done) == 1:
                Claim(claim.folder, claim.name, claim.number + 1).path.touch()
                RowFolder(out).publish(task.name, replace(pretended_row(task), commit="of the other"))
                if ends_with_error:
                    raise UserError("the folder is gone")
            return super().outcome(task, claim)

    run(path, out, Slept(), watch=watch)
    assert [row.commit for row in rows_of(out)] == ["of the other", "abc"]
    note = "baseline_coca, pictograms, seed 0: another process goes on with it, since this one gave no sign of life"
    assert (note in watch.told) == ends_with_error


def test_a_grid_is_run_with_every_seed_and_the_best_point_goes_on(write_study, tmp_path):
    path, out = write_study(arms=GRIDS, finetune=["health.yaml"], endpoints=PRETRAINING), tmp_path / "out"
    done = run(path, out, Pretending(), watch=(watch := Notes())).done
    assert len(done) == 2 * (2 * 2 + 2)
    assert sum(", lr 0.001, " in title for title in done) == 4
    assert "chosen for grr_coca, pictograms: lr 0.001" in watch.told
    ledger = read_ledger(out)
    assert [(row.arm, row.seed, row.stage) for row in ledger.rows] == [
        (name, seed, stage)
        for name in ("baseline_coca", "grr_coca")
        for seed in (0, 1)
        for stage in ("pictograms", "health")
    ]
    assert len(ledger.tried) == 8
    assert list((out / "runs").rglob(FINISHED)) == []
    assert run(path, out, Pretending()).done == []


def test_a_full_disk_is_named_and_the_study_goes_on_when_there_is_room(write_study, tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    path, out = write_study(seeds=[0], finetune=["health.yaml"]), tmp_path / "out"
    arms = ["grr_coca"]
    with monkeypatch.context() as disk:
        disk.setattr("grr_coca.train.run_checkpoints.save_tensors", full)
        with pytest.raises(UserError) as stopped:
            run(path, out, arms=arms)
    said = str(stopped.value)
    assert said.startswith(f"grr_coca, pictograms, seed 0: {out / 'runs'}")
    assert "step-000000006: the checkpoint could not be written (No space left on device); free some space" in said
    assert f"or move the folder {out / 'runs'} to another disk and give it as --runs" in said
    assert list((out / "runs").rglob("step-*")) == [], "nothing half-written stays"
    assert run(path, out, arms=arms).done == ["grr_coca, pictograms, seed 0", "grr_coca, health, seed 0"]
    assert read_ledger(out).notes == ()
    assert [row.stage for row in read_ledger(out).rows] == ["pictograms", "health"]


def test_a_run_that_diverged_is_a_result_and_not_begun_again(write_study, tmp_path, monkeypatch, capsys):
    def diverge(recipe, start, folder, *rest):
        return diverged(recipe, start, folder) if recipe.seed == 0 else train(recipe, start, folder, *rest)

    monkeypatch.setattr("grr_coca.study.running.stage.train", diverge)
    out, arms, workers = tmp_path / "out", ["grr_coca"], Here()
    path = write_study(finetune=["health.yaml"])
    with warnings_of("grr_coca.study.running.stage") as warned:
        run(path, out, workers, arms=arms)
    assert workers.done == [
        "grr_coca, pictograms, seed 0",
        "grr_coca, pictograms, seed 1",
        "grr_coca, health, seed 1",
    ], "nothing is fine-tuned from a model that diverged"
    assert warned == ["grr_coca, pictograms, seed 0 diverged: step 7: loss or gradient were not finite"]
    ledger = read_ledger(out)
    assert [(row.seed, row.stage) for row in ledger.rows] == [(1, "pictograms"), (1, "health")]
    (row,) = ledger.diverged
    assert (row.seed, row.stage, row.metrics) == (0, "pictograms", {})
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    assert run(path, out, Here(), arms=arms).done == []
    print_status(out)
    assert "grr_coca, seed 0, pictograms: diverged" in capsys.readouterr().out


def test_an_arm_that_diverges_at_every_point_does_not_stop_the_others(write_study, tmp_path):
    class Diverging(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            row = super().outcome(task, claim)
            return replace(row, kind="diverged", metrics={}) if task.arm == "baseline_coca" else row

    path, out, said = write_study(**TUNED), tmp_path / "out", "baseline_coca, pictograms: no point of the grid"
    with pytest.raises(UserError, match=said):
        run(path, out, Diverging())
    done = [(row.arm, row.seed, row.stage) for row in read_ledger(out).rows]
    assert done == [("grr_coca", 0, "pictograms"), ("grr_coca", 0, "health")]
    assert run(path, out, Diverging(), arms=["grr_coca"]).done == []
    with pytest.raises(UserError, match=said):
        run(path, out, Diverging())


def test_runs_whose_rows_lack_the_scores_that_a_plan_needs_are_done_again(write_study, tmp_path, capsys):
    out, plan = tmp_path / "out", {"seeds": [0], "finetune": ["health.yaml"], "endpoints": PRETRAINING}
    run(write_study(**plan), out, Pretending())
    path = write_study(**plan | {"endpoints": {**PRETRAINING, "secondary": ["pretraining/CIDEr-D"]}})
    write_plan(read_plan(path, Plan), out)
    print_status(out)
    said = capsys.readouterr().out.splitlines()
    assert said[1].split() == ["baseline_coca", "0", "1"]
    assert "grr_coca, seed 0, pictograms: lacks CIDEr-D; `grr-coca study run` repeats it" in said
    assert run(path, out, Pretending()).done == ["baseline_coca, pictograms, seed 0", "grr_coca, pictograms, seed 0"]
    rows = read_ledger(out).rows
    assert [row.metrics.keys() >= {"test"} for row in rows if row.stage == "pictograms"] == [True, True]
    assert run(path, out, Pretending()).done == []


def test_a_run_whose_score_is_nan_is_not_repeated_for_ever(write_study, tmp_path):
    class Without(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            return replace(super().outcome(task, claim), metrics={"val": {"coca_loss": 1.0}})

    scored = {**PRETRAINING, "secondary": ["pretraining/CIDEr-D"]}
    path, out = write_study(seeds=[0], finetune=[], endpoints=scored), tmp_path / "out"
    assert len(run(path, out, Without(stop_after=10)).done) == 2
    assert len(run(path, out, Without(stop_after=10)).done) == 2, "perhaps another version of the code computes it"
    assert len(rows_of(out)) == 2


def test_trials_of_an_earlier_grid_choose_nothing(write_study, tmp_path):
    """What was tried counts as long as the plan tries it."""
    out = tmp_path / "out"

    def tuned(*rates: float) -> Ledger:
        arms = [{**each, "grid": {"optimizer.lr": list(rates)}} for each in TUNED["arms"]]
        run(write_study(**{**TUNED, "arms": arms}), out, Pretending())
        return read_ledger(out)

    first = tuned(0.1, 0.2)
    assert (len(first.tried), len(first.chosen), first.notes) == (2 * 4, 2 * 2, ())
    second = tuned(0.2, 0.3)
    assert {trial.settings["optimizer.lr"] for trial in second.tried if trial.stage == "pictograms"} == {0.2, 0.3}
    assert second.chosen["grr_coca", "pictograms"] == {"optimizer.lr": 0.2}
    assert len(second.tried) == 2 * 4, "fine-tunings start from another model now"
    assert any(note.startswith("grr_coca, lr 0.1, seed 9, pictograms: not counted: another") for note in second.notes)
    assert tuned(0.1, 0.2).chosen == first.chosen


def test_a_study_in_a_folder_that_is_a_link_goes_on(write_study, tmp_path):
    path, disk = write_study(**ONE_SEED), tmp_path / "disk" / "far" / "away"
    disk.mkdir(parents=True)
    (tmp_path / "out").symlink_to(disk)
    assert len(run(path, tmp_path / "out", Pretending()).done) == 2
    assert read_plan(tmp_path / "out" / "plan.yaml", Plan) == read_plan(path, Plan)
    assert run(path, tmp_path / "out", Pretending()).done == []


def test_another_plan_that_a_person_wrote_is_not_overwritten(write_study, tmp_path):
    arms = ["baseline_coca", {"name": "grr_coca", "recipes": "own"}]
    path = write_study(arms=arms, **ONE_SEED)
    (tmp_path / "own").mkdir()
    shutil.copy(tmp_path / "pictograms.yaml", tmp_path / "own")
    out = tmp_path / "out"
    run(path, out, Pretending())
    written = (out / "plan.yaml").read_text()
    assert str(tmp_path) not in written, "it can be committed"
    assert read_plan(out / "plan.yaml", Plan) == read_plan(path, Plan)
    texts = [path.read_text() for path in sorted((out / "rows").iterdir())]
    rows = [json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for text in texts]
    assert [row["arm"] for row in rows] == ["baseline_coca", "grr_coca"]
    (out / "plan.yaml").write_text(written.replace("# Written by", "# By hand, after"))
    assert run(path, out, Pretending()).done == []
    with pytest.raises(UserError, match="differs from the plan to run"):
        run(write_study(seeds=[1], finetune=[], endpoints=PRETRAINING), out)
