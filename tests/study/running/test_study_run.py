"""A study is run: tuned, trained, measured, and gone on with, each thing once."""

import errno
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from support import CPU, real_pairs, warnings_of, write_shard
from synthetic_study import PRETRAINING, TUNED, arm, diverged, pretended_row
from workers_here import WorkersHere

from grr_coca.common.errors import UserError
from grr_coca.train.loop import train
from grr_coca_study.claims import Claim
from grr_coca_study.commands.study import print_status
from grr_coca_study.ledger import Ledger, read_digests, read_ledger
from grr_coca_study.plan import Plan, plan_of_folder, read_plan
from grr_coca_study.rows import LedgerRow, RowFolder
from grr_coca_study.running import run as running
from grr_coca_study.running.agenda import FINISHED, RemainingWork, Task
from grr_coca_study.running.dry_run import _describe_disk_use
from grr_coca_study.running.run import ProgressCallbacks, Study, StudyFolders, write_plan
from grr_coca_study.running.stage import run_stage
from grr_coca_study.thumbnails import thumbnail_path

ONE_RUN = {"seeds": [0], "finetune": [], "endpoints": PRETRAINING}
"""Changes of a plan: each arm has one run."""
TWO_RUNS = {"seeds": [0], "finetune": ["health.yaml"]}
OF_GRR_COCA = ["grr_coca, pictograms, seed 0", "grr_coca, health, seed 0"]
OF_BASELINE = ["baseline_coca, pictograms, seed 0", "baseline_coca, health, seed 0"]


class Pretending(WorkersHere):
    """Stands in for the processes, and trains nothing: for what depends on the order of rows and files alone."""

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
        task.folder.mkdir(parents=True)
        (task.folder / FINISHED).touch()
        return pretended_row(task)


class Training(Pretending):
    def outcome(self, task: Task, claim: Claim) -> LedgerRow:
        return run_stage(task, CPU, lambda _: None)


class StudyHere(ProgressCallbacks):
    """A study whose plan is laid out by `write_study`, and which is run in this process."""

    def __init__(self, write_study, out: Path) -> None:
        self.write_study = write_study
        self.out = out
        self.messages: list[str] = []

    def note(self, text: str) -> None:
        self.messages.append(text)

    def lay_out(self, **changes: object) -> Plan:
        self.plan = read_plan(self.write_study(**changes), Plan)
        return self.plan

    def run(self, *arms: str, workers: Pretending | None = None, keeps_models: bool = False) -> list[str]:
        """The titles of what was done."""
        workers = workers or Pretending()
        folders = StudyFolders(out=self.out, runs=self.out / "runs", keeps_models=keeps_models)
        Study(self.plan, folders, arms or None).run(workers, self)
        return workers.done

    def stop_after(self, count: int, *arms: str, kind: type[Pretending] = Pretending) -> None:
        with pytest.raises(KeyboardInterrupt):
            self.run(*arms, workers=kind(count))

    @property
    def ledger(self) -> Ledger:
        return read_ledger(self.out, plan_of_folder(self.out))

    @property
    def rows(self) -> list[LedgerRow]:
        """All rows, whether they count or not."""
        return RowFolder(self.out).new_rows()


@pytest.fixture
def study(write_study, tmp_path) -> StudyHere:
    return StudyHere(write_study, tmp_path / "out")


@pytest.mark.ci
def test_stopped_study_continues_through_tuning_and_runs(study):
    study.lay_out(**TUNED)
    study.stop_after(3, "grr_coca", kind=Training)
    first = study.ledger
    assert [len(rows) for rows in (first.tried, first.chosen, first.rows)] == [3, 1, 0]
    assert list(study.out.rglob(".*claim*")) != [], "those of the run that was stopped"
    assert len(study.run("grr_coca", workers=Training())) == 2 + 2 + 2 - 3, "nothing is done twice"
    ledger = study.ledger
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
    assert list(study.out.rglob(".*claim*")) == []
    assert list((study.out / "runs").rglob("*.safetensors")) == [], "models that were measured are gone"
    assert_a_row_says_what_was_measured(ledger.rows[0])
    picture = assert_pictures_are_there(study.out, ledger.rows)
    picture.unlink()
    assert study.run("grr_coca") == []
    assert picture.exists(), "what is missing is put there when the study goes on"

    more = [arm("baseline_coca"), {**TUNED["arms"][1], "finetune_grid": {"optimizer.lr": [0.001, 0.01, 0.1]}}]
    study.lay_out(**{**TUNED, "arms": more})
    done = study.run("grr_coca", workers=Training())
    assert len(done) == 2, "the model that trials start from is made again, and the new trial"
    assert read_digests(study.out).recipes["grr_coca"].keys() == {"pictograms", "health"}


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
    on_val, on_test = row.metrics["val"], row.metrics["test"]
    names = {"contrastive_loss", "contrastive_loss_refitted", "perplexity", "coca_loss", "R@1", "CIDEr-D"}
    assert names <= on_test.keys()
    assert on_val["contrastive_loss_refitted"] <= on_val["contrastive_loss"] + 1e-6
    assert set(row.values) == {"test", "test_style"}
    values = row.values["test"]
    of_batches = dict.fromkeys(("contrastive_batches", "contrastive_batches_refitted"), 2)
    of_pairs = dict.fromkeys(("nll", "tokens", "rank", "cider_d"), 16)
    assert {name: len(numbers) for name, numbers in values.items()} == {**of_batches, **of_pairs}
    assert sum(values["contrastive_batches"]) / 2 == pytest.approx(on_test["contrastive_loss"], abs=1e-4)
    assert sum(values["nll"]) / sum(values["tokens"]) == pytest.approx(on_test["captioning_loss"], abs=1e-4)
    assert sum(rank == 0 for rank in values["rank"]) / 16 == on_test["R@1"]
    assert [(point.step, set(point.train)) for point in row.curve] == [(6, {"contrastive", "captioning"})]
    assert len(row.captions) == 6
    assert row.precision == "fp32"
    assert row.seconds > 0
    assert row.parameters > row.image_encoder_parameters > 0
    assert row.training_flops > 0


def test_lost_model_is_retrained_and_keeps_its_row(study, tmp_path):
    plan = study.lay_out(**TWO_RUNS)
    study.stop_after(1)
    shutil.rmtree(study.out / "runs")
    agenda = RemainingWork(plan, lambda *_: tmp_path / "nowhere", study.ledger.rows)
    assert agenda.missing_runs().total() == 4, "it counts, so that no more than all is done"
    assert study.run() == OF_BASELINE + OF_GRR_COCA
    assert len(study.ledger.rows) == 4
    assert study.ledger.notes == ()


def test_repeated_trial_counts_once(study):
    class Worse(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            metrics = {"val": {"coca_loss": 9.0}, "test": {"CIDEr-D": 1.0}}
            return replace(super().outcome(task, claim), metrics=metrics)

    study.lay_out(**TUNED)
    study.stop_after(2, "grr_coca")
    chosen = study.ledger.chosen
    assert len(chosen) == 1
    shutil.rmtree(study.out / "runs")
    assert len(study.run("grr_coca", workers=Worse())) == 1 + 2 + 2, "the start once more, two trials, two runs"
    assert study.ledger.chosen.items() >= chosen.items()
    assert len(study.rows) == 2 + 2 + 2


def test_changed_data_restart_every_run(study, tmp_path):
    study.lay_out(**TWO_RUNS)
    study.run("grr_coca", keeps_models=True)
    write_shard(tmp_path / "data" / "pictograms-train.tar", real_pairs(30))
    assert study.run("grr_coca") == OF_GRR_COCA, "the data of fine-tuning are the same, its start is not"
    ledger = study.ledger
    assert [row.stage for row in ledger.rows] == ["pictograms", "health"]
    faults = {note.split(": ")[2].split(" (")[0] for note in ledger.notes}
    assert faults == {"other data", "other data of pretraining"}
    assert study.run("grr_coca") == []


def test_status_of_arms_that_wait_for_other_settings_is_shown(study):
    study.lay_out(**TUNED | {"arms": [TUNED["arms"][0], "grr_coca"], "tuning": TUNED["tuning"] | {"shared": True}})
    with pytest.raises(UserError, match="2 runs left that cannot start before other processes have tuned the settings"):
        study.run("grr_coca")
    study.run("baseline_coca")
    assert len(study.run("grr_coca")) == 2


def test_concurrent_jobs_each_run_once(study):
    """Another job begins when this one has claimed its first run, and does all that it can."""
    study.lay_out(**TUNED)
    others = Pretending()

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    class Together(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            if len(self.done) == 1:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(running.time, "sleep", interrupted)  # it would wait for the run that this one has
                    with pytest.raises(KeyboardInterrupt):
                        study.run(workers=others)
            return super().outcome(task, claim)

    mine = study.run(workers=Together())
    assert (
        "other processes are doing all remaining work; this process waits in case one of them fails" in study.messages
    )
    assert len({*mine, *others.done}) == len(mine) + len(others.done) == 2 * (2 + 2 + 2)
    assert read_digests(study.out).recipes.keys() == {"baseline_coca", "grr_coca"}
    assert [len(rows) for rows in (study.ledger.rows, study.ledger.notes)] == [4, 0]


def test_rows_of_separate_machines_form_one_study(study, write_study, tmp_path):
    plan = study.lay_out(**TUNED)
    for name in ("baseline_coca", "grr_coca"):
        elsewhere = StudyHere(write_study, tmp_path / name)
        elsewhere.plan = plan
        elsewhere.run(name)
        shutil.copytree(elsewhere.out / "rows", study.out / "rows", dirs_exist_ok=True)
    assert study.run() == []
    ledger = study.ledger
    assert (len(ledger.rows), len(ledger.tried), len(ledger.chosen), ledger.notes) == (4, 8, 4, ())


def test_corrupt_rows_and_digests_are_reported_and_repaired(study):
    study.lay_out(**ONE_RUN)
    study.run()
    half, digests = sorted((study.out / "rows").iterdir())[1], study.out / "digests.json"
    whole = digests.read_text()
    half.write_text(half.read_text()[:-20])
    digests.write_text(whole[:-20])
    assert study.run() == OF_GRR_COCA[:1]
    assert study.messages[0].startswith(f"{half.name}: is not a row and does not count")
    assert len(study.ledger.rows) == 2
    assert digests.read_text() == whole


@pytest.mark.parametrize("ends_with_error", [False, True])
def test_run_taken_over_has_one_row(study, ends_with_error):
    """The process slept, and another one has taken its run over and ended it, in the same folder. Either both have
    measured it, or this one finds no model there."""

    class Slept(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            if len(self.done) == 1:
                Claim(claim.folder, claim.name, claim.number + 1).path.touch()
                RowFolder(study.out).publish(task.name, replace(pretended_row(task), commit="of the other"))
                if ends_with_error:
                    raise UserError("the folder is gone")
            return super().outcome(task, claim)

    study.lay_out(**ONE_RUN)
    study.run(workers=Slept())
    assert [row.commit for row in study.rows] == ["of the other", "abc"]
    note = (
        "baseline_coca, pictograms, seed 0: another process has taken over this task, because this "
        "process did not renew its claim"
    )
    assert (note in study.messages) == ends_with_error


def test_dry_run_reports_a_small_disk(study, monkeypatch):
    plan = study.lay_out(**ONE_RUN)
    folders = StudyFolders(out=study.out, runs=study.out / "runs", keeps_models=False)
    wants = Counter({("grr_coca", 0, "pictograms"): 1})
    for free, is_reported in ((10**15, False), (10**3, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert (
            any("the disk is too small" in line for line in _describe_disk_use(plan, folders, wants, 1)) == is_reported
        )


@pytest.mark.ci
def test_full_disk_is_named_and_the_study_can_continue(study, monkeypatch):
    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    study.lay_out(**TWO_RUNS)
    runs = study.out / "runs"
    with monkeypatch.context() as disk:
        disk.setattr("grr_coca.train.run_checkpoints.save_tensors", full)
        with pytest.raises(UserError) as stopped:
            study.run("grr_coca", workers=Training())
    message = str(stopped.value)
    assert message.startswith(f"grr_coca, pictograms, seed 0: {runs}")
    assert "step-000000006: the checkpoint cannot be written (No space left on device); free some space" in message
    assert f"or move the folder {runs} to another disk and pass it as --runs" in message
    assert list(runs.rglob("step-*")) == [], "nothing half-written stays"
    assert study.run("grr_coca", workers=Training()) == OF_GRR_COCA
    assert study.ledger.notes == ()


@pytest.mark.ci
def test_diverged_run_is_a_result_and_not_repeated(study, monkeypatch, capsys):
    def diverge(recipe, start, folder, *rest):
        return diverged(recipe, start, folder) if recipe.seed == 0 else train(recipe, start, folder, *rest)

    monkeypatch.setattr("grr_coca_study.running.stage.train", diverge)
    study.lay_out(finetune=["health.yaml"])
    with warnings_of("grr_coca_study.running.stage") as warned:
        done = study.run("grr_coca", workers=Training())
    assert done == [OF_GRR_COCA[0], "grr_coca, pictograms, seed 1", "grr_coca, health, seed 1"], (
        "nothing is fine-tuned from a model that diverged"
    )
    assert warned == ["grr_coca, pictograms, seed 0 diverged: step 7: loss or gradient were not finite"]
    ledger = study.ledger
    assert [(row.seed, row.stage) for row in ledger.rows] == [(1, "pictograms"), (1, "health")]
    assert [(row.seed, row.stage, row.metrics) for row in ledger.diverged] == [(0, "pictograms", {})]
    assert not list((study.out / "runs").rglob("*.safetensors"))
    assert study.run("grr_coca") == []
    print_status(study.out)
    assert "grr_coca, seed 0, pictograms: diverged" in capsys.readouterr().out


def test_arm_that_always_diverges_does_not_stop_others(study):
    class Diverging(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            row = super().outcome(task, claim)
            return replace(row, kind="diverged", metrics={}) if task.arm == "baseline_coca" else row

    study.lay_out(**TUNED)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"baseline_coca, pictograms: runs diverged at every point .* use lower learning rates"
        ):
            study.run(workers=Diverging())
        done = [(row.arm, row.seed, row.stage) for row in study.ledger.rows]
        assert done == [("grr_coca", 0, "pictograms"), ("grr_coca", 0, "health")]
        assert study.run("grr_coca", workers=Diverging()) == []


def test_runs_with_missing_scores_are_repeated(study, capsys):
    study.lay_out(**TWO_RUNS, endpoints=PRETRAINING)
    study.run()
    scored = study.lay_out(**TWO_RUNS, endpoints={**PRETRAINING, "secondary": ["pretraining/CIDEr-D"]})
    write_plan(scored, study.out)
    print_status(study.out)
    output = capsys.readouterr().out.splitlines()
    assert output[1].split() == ["baseline_coca", "0", "1"]
    assert "grr_coca, seed 0, pictograms: lacks CIDEr-D; repeat with `grr-coca study run`" in output
    assert study.run() == [OF_BASELINE[0], OF_GRR_COCA[0]]
    assert all("test" in row.metrics for row in study.ledger.rows if row.stage == "pictograms")
    assert study.run() == []


def test_run_whose_score_is_nan_is_not_repeated_forever(study):
    class Without(Pretending):
        def outcome(self, task: Task, claim: Claim) -> LedgerRow:
            return replace(super().outcome(task, claim), metrics={"val": {"coca_loss": 1.0}})

    study.lay_out(**ONE_RUN | {"endpoints": {**PRETRAINING, "secondary": ["pretraining/CIDEr-D"]}})
    for _ in range(2):  # perhaps another version of the code computes it
        assert len(study.run(workers=Without(stop_after=10))) == 2
    assert len(study.rows) == 2


def test_trials_of_an_earlier_grid_choose_nothing(study):
    """What was tried counts as long as the plan tries it."""

    def tuned(*rates: float) -> Ledger:
        arms = [{**each, "grid": {"optimizer.lr": list(rates)}} for each in TUNED["arms"]]
        study.lay_out(**{**TUNED, "arms": arms})
        study.run()
        return study.ledger

    first = tuned(0.1, 0.2)
    assert (len(first.tried), len(first.chosen), first.notes) == (2 * 4, 2 * 2, ())
    second = tuned(0.2, 0.3)
    assert {trial.settings["optimizer.lr"] for trial in second.tried if trial.stage == "pictograms"} == {0.2, 0.3}
    assert second.chosen["grr_coca", "pictograms"] == {"optimizer.lr": 0.2}
    assert len(second.tried) == 2 * 4, "fine-tunings start from another model now"
    assert any(note.startswith("grr_coca, lr 0.1, seed 9, pictograms: not counted: another") for note in second.notes)
    assert tuned(0.1, 0.2).chosen == first.chosen


def test_manually_written_plan_is_not_overwritten(study, tmp_path):
    study.lay_out(arms=["baseline_coca", {"name": "grr_coca", "recipes": "own"}], **ONE_RUN)
    (tmp_path / "own").mkdir()
    shutil.copy(tmp_path / "pictograms.yaml", tmp_path / "own")
    study.run()
    path = study.out / "plan.yaml"
    written = path.read_text()
    assert str(tmp_path) not in written, "it can be committed"
    assert read_plan(path, Plan) == study.plan
    for row in (study.out / "rows").iterdir():
        json.loads(row.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    path.write_text(written.replace("# Written by", "# By hand, after"))
    assert study.run() == []
    study.lay_out(**ONE_RUN | {"seeds": [1]})
    with pytest.raises(UserError, match="differs from the plan to run"):
        study.run()
