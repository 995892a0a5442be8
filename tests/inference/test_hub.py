"""Names on the hub: only a checkpoint's files are fetched, and nothing when a folder is there."""

import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from grr_coca.errors import UserError
from grr_coca.inference import load
from grr_coca.inference.locate import locate_checkpoint


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


def test_a_hub_name_is_fetched_and_loaded(hub, run):
    calls = hub(run.checkpoint)
    model = load("someone/emoji-captioner", "cpu")
    assert model.checkpoint.step == 3
    ((repo_id, options),) = calls
    assert repo_id == "someone/emoji-captioner"
    assert sorted(options["allow_patterns"]) == [
        "config.json",
        "model.safetensors",
        "preprocess.json",
        "tokenizer.json",
    ]


def test_a_folder_of_the_same_name_is_nearer_than_the_hub(hub, tmp_path, monkeypatch):
    calls = hub(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/mine: not a checkpoint"):
        locate_checkpoint("runs/mine")
    assert calls == []


@pytest.mark.parametrize("name", ["mine", "/nowhere/mine", "./mine", "runs/demo/mine", "a/../b", "~/mine", "-/"])
def test_what_is_no_hub_name_stays_a_path(hub, tmp_path, name):
    calls = hub(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load(name)
    assert calls == []


ANSWER = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    "error",
    [RepositoryNotFoundError("404 Client Error.\nTry again.", response=ANSWER), ConnectionError("no route to host")],
    ids=["unknown", "offline"],
)
def test_what_the_hub_does_not_give_is_told_in_one_line(hub, error):
    hub(error)
    with pytest.raises(UserError) as told:
        load("runs/mien")
    assert str(told.value).startswith("runs/mien: no such folder, and no download from the Hugging Face hub")
    assert "\n" not in str(told.value)


def test_without_the_hubs_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'grr-coca\[hub\]'"):
        load("someone/emoji-captioner")
