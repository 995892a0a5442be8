"""Names of checkpoints: a folder before a bundled model, a bundled model before the hub."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from support import snapshot

import grr_coca
from grr_coca.common.errors import UserError, install_command
from grr_coca.common.files import MANIFEST, read_manifest
from grr_coca.infer.load import load, locate_checkpoint
from grr_coca.model.checkpoint_files import DEFAULT, FILES, FOLDER, MODEL_FILES, bundled_models


def test_bundled_model_is_found_by_its_name():
    assert locate_checkpoint(DEFAULT) == FOLDER / DEFAULT


def test_folder_wins_over_a_model_name_with_a_note(run, tmp_path, monkeypatch, caplog):
    shutil.copytree(run.checkpoint, tmp_path / DEFAULT)
    monkeypatch.chdir(tmp_path)
    assert str(locate_checkpoint(DEFAULT)) == DEFAULT
    assert "this folder is used, not the bundled model of the same name" in caplog.text


def test_folder_without_any_does_not(tmp_path, monkeypatch):
    (tmp_path / DEFAULT).mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate_checkpoint(DEFAULT) == FOLDER / DEFAULT


def test_unknown_name_suggests_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pictogram: no folder or model has this name; did you mean 'pictograms'\?"):
        grr_coca.load("pictogram")


@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_bundled_model_is_small_and_its_card_is_complete(name):
    card, folder = bundled_models()[name], FOLDER / name
    assert sum(len(content) for content in snapshot(folder).values()) <= 12_000_000
    page = (folder / "card.md").read_text()
    for split, figures in card.figures.items():
        assert f"| {split} |" in page
        assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
    model = grr_coca.load(name, engine="torch")
    assert sum(parameter.numel() for parameter in model.checkpoint.model.parameters()) == card.parameters
    assert model.checkpoint.step == card.steps
    assert json.loads((folder / "config.json").read_text())["preset"] == card.preset


# --- On the Hugging Face hub


@pytest.fixture
def hub(monkeypatch):
    """Calls of the hub; answers with a folder or an error."""
    calls = []

    def answer_with(answer):
        def snapshot_download(repo_id, **options):
            calls.append((repo_id, options))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return answer_with


def test_hub_name_is_fetched_and_loaded(hub, run):
    calls = hub(run.checkpoint)
    model = load("someone/emoji-captioner", "cpu")
    assert model.checkpoint.step == 3
    ((repo_id, options),) = calls
    assert repo_id == "someone/emoji-captioner"
    patterns = options["allow_patterns"]
    assert {*patterns} == {*MODEL_FILES, MANIFEST}
    assert {Path(pattern).suffix for pattern in patterns} == {".json", ".onnx", ".safetensors", ".txt"}, "no code"


def test_manifest_on_the_hub_may_list_unfetched_files(hub, run, tmp_path):
    """As that of a checkpoint of a run, whose folder was uploaded as it is."""
    for name in (*FILES, MANIFEST):
        shutil.copyfile(run.checkpoint / name, tmp_path / name)
    assert len(read_manifest(tmp_path)) > len(FILES)
    hub(tmp_path)
    assert load("someone/emoji-captioner", "cpu").checkpoint.step == 3


def test_folder_of_the_same_name_is_nearer_than_the_hub(hub, tmp_path, monkeypatch):
    calls = hub(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/mine: not a checkpoint"):
        locate_checkpoint("runs/mine")
    assert calls == []


@pytest.mark.parametrize("name", ["mine", "/nowhere/mine", "./mine", "runs/demo/mine", "a/../b", "~/mine", "-/"])
def test_invalid_hub_name_stays_a_path(hub, tmp_path, name):
    calls = hub(tmp_path)
    with pytest.raises(UserError, match=r"no folder or model has this name|no such folder"):
        load(name)
    assert calls == []


ANSWER = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    "error",
    [
        RepositoryNotFoundError("404 Client Error.\nTry again.", response=ANSWER),
        ConnectionError("no route to host"),
        Exception("peer closed connection"),
    ],
    ids=["unknown", "offline", "cut off"],
)
def test_hub_error_reports_one_line(hub, error):
    hub(error)
    with pytest.raises(UserError) as error:
        load("runs/mien")
    assert str(error.value).startswith("runs/mien: not a folder, and cannot be downloaded from the Hugging Face hub")
    assert "\n" not in str(error.value)


def test_missing_hub_package_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=re.escape(install_command("hub"))):
        load("someone/emoji-captioner")
