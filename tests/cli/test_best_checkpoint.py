"""A run with `keep_best`: commands use its best checkpoint, and name it; `--resume` continues from the newest."""

import json
import shutil

import numpy as np
import pytest
from support import BATCH_SIZE, finished_run

from grr_coca.common.errors import UserError
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import BEST_FILE
from grr_coca.train.recipe import CheckpointRecipe, EvaluationRecipe
from grr_coca.train.run_checkpoints import resume_point


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose last step is not the best one, as its file says."""
    run = finished_run(
        tmp_path_factory.mktemp("best"),
        steps=2,
        evaluation=EvaluationRecipe(interval=1, batch_size=BATCH_SIZE),
        checkpoints=CheckpointRecipe(keep_best="coca_loss"),
    )
    (run.folder / "checkpoints" / BEST_FILE).write_text('{"step": 1}\n')
    return run


def step(run, number):
    return run.folder / "checkpoints" / f"step-{number:09d}"


def note(run):
    return f"{run.folder}: using step 1, which is best on val; the newest is step 2"


COMMANDS = {
    "evaluate": ("evaluate", "RUN", "--data", "PAIRS", "--batch-size", BATCH_SIZE),
    "caption": ("caption", "IMAGE", "-c", "RUN"),
    "push": ("push", "RUN", "someone/mine", "--licence", "mit", "--dry-run"),
    "classify": ("classify", "IMAGE", "--labels", "cat,dog", "-c", "RUN"),
}


@pytest.mark.ci
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_use_the_best_checkpoint_and_name_it(grr_coca, finished, image_files, name, caplog):
    def result(model):
        words = {"RUN": model, "PAIRS": finished.shard, "IMAGE": image_files[0]}
        outcome = grr_coca(*(words.get(word, word) for word in COMMANDS[name]))
        assert outcome.code == 0, outcome.err
        return outcome

    of_best = result(step(finished, 1))
    assert note(finished) not in caplog.messages
    of_run = result(finished.folder)
    assert of_run.out.replace(str(finished.folder), "") == of_best.out.replace(str(step(finished, 1)), "")
    assert caplog.messages.count(note(finished)) == 1, "one line names it"


def test_embeddings_equal_those_of_the_best_checkpoint(grr_coca, finished, image_files, tmp_path):
    outs = {}
    for name, model in {"run": finished.folder, "best": step(finished, 1), "newest": step(finished, 2)}.items():
        assert grr_coca("embed", image_files[0], "-c", model, "--out", tmp_path / f"{name}.npy").code == 0
        outs[name] = np.load(tmp_path / f"{name}.npy")
    assert np.array_equal(outs["run"], outs["best"])
    assert not np.array_equal(outs["run"], outs["newest"])


def test_resumed_run_continues_from_the_newest(finished):
    assert resume_point(finished.folder, finished.recipe) == step(finished, 2)


@pytest.mark.ci
def test_index_keeps_its_checkpoint(grr_coca, finished, image_files, tmp_path):
    folder, index = tmp_path / "run", tmp_path / "index"
    shutil.copytree(finished.folder, folder)
    images = image_files[0].parent
    assert grr_coca("index", images, "-c", folder, "--out", index).code == 0
    (folder / "checkpoints" / BEST_FILE).write_text('{"step": 2}\n')
    assert grr_coca("search", index, "cat").code == 0, "with the checkpoint that it was made with"
    outcome = grr_coca("search", index, "cat", "-c", folder)
    assert outcome.code == 2
    assert f"an index of the model '{folder}/checkpoints/step-000000001'" in outcome.err
    shutil.rmtree(folder / "checkpoints" / "step-000000001")
    outcome = grr_coca("search", index, "cat")
    assert outcome.code == 2
    assert "step-000000001', which cannot be loaded" in outcome.err


def test_missing_best_checkpoint_is_replaced_with_a_warning(finished, tmp_path, caplog):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "step-000000001")
    assert from_pretrained(folder).step == 2
    assert "best.json: names step 1, which does not exist; using step 2, the newest" in caplog.text


def test_corrupt_name_of_the_best_is_an_error(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    (folder / "checkpoints" / BEST_FILE).write_text(json.dumps({"best": 1}))
    with pytest.raises(UserError, match=r"best\.json: unknown key 'best'"):
        locate_checkpoint(folder)


def test_revision_of_a_folder_is_an_error(finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finished.folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^runs/mine@best: only models on the hub have revisions, but runs/mine is a"):
        locate_checkpoint("runs/mine@best")
