"""Files of strangers: whatever is in them, nothing of it is run."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support import ALONE, silent, warnings_of

from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST
from grr_coca.data.sources.open import open_source
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.loop import train
from grr_coca.train.recipe import load_recipe
from grr_coca.train.run_checkpoints import resume_point


class Bomb:
    """What creates a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.fixture
def trace(tmp_path):
    """The file that is there once anything was run; each test ends by looking."""
    path = tmp_path / "something was run"
    yield path
    assert not path.exists()


def test_unpickled_bomb_leaves_a_trace(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.fixture
def run(averaged_run, tmp_path):
    """A copy of a run to put things into, at its first checkpoint."""
    folder = shutil.copytree(averaged_run.folder, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "step-000000002")
    return replace(averaged_run, folder=folder)


def go_on(run):
    """Resume the run without looking at checksums, which a stranger can write as well as we can."""
    return train(run.recipe, from_pretrained(run.checkpoint), run.folder, ALONE, silent, run.checkpoint)


HOSTILE = [
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "preprocess.json",
    MANIFEST,
    "training/optimizer.safetensors",
    "training/weights.safetensors",
    "training/ema.safetensors",
    "training/progress.json",
    "training/numerics.json",
    "training/data.json",
]


def test_all_hostile_files_are_listed(run):
    files = [path for path in run.checkpoint.rglob("*") if path.is_file()]
    assert {path.relative_to(run.checkpoint).as_posix() for path in files} == set(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("write", [pickle.dumps, None], ids=["pickle", "torch.save"])
def test_rejects_pickles_without_running_them(run, trace, name, write):
    path = run.checkpoint / name
    if write:
        path.write_bytes(write(Bomb(trace)))
    else:
        torch.save({"weight": Bomb(trace)}, path)
    with (
        warnings_of("grr_coca.train.run_checkpoints") as warned,
        pytest.raises(UserError, match="none of its checkpoints can be read"),
    ):
        resume_point(run.folder, run.recipe)
    assert str(run.checkpoint) in warned[0]
    if name != MANIFEST:
        (run.checkpoint / MANIFEST).unlink()  # as in a checkpoint that a stranger put together
    with pytest.raises(UserError, match=str(run.checkpoint)):
        go_on(run)


def test_does_not_open_crafted_extra_files(run, trace):
    for name in (".metadata", "training/.metadata", "model.pt", "pytorch_model.bin", "__0_0.distcp"):
        (run.checkpoint / name).write_bytes(pickle.dumps(Bomb(trace)))
    assert resume_point(run.folder, run.recipe) == run.checkpoint
    assert go_on(run).step == 2


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trace}']]",
        "!!python/object/apply:os.system ['touch \"{trace}\"']",
        "!!python/object/new:pathlib.Path ['{trace}']",
        "!!python/name:os.system",
    ],
)
def test_rejects_yaml_tags_without_running_them(run, trace, tag):
    recipe = run.folder / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text())
    del content["seed"]
    recipe.write_text(yaml.safe_dump(content) + f"seed: {tag.format(trace=trace)}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: not a readable YAML file"):
        load_recipe(recipe)
    with pytest.raises(UserError, match=r"recipe\.yaml: not a readable YAML file"):
        resume_point(run.folder, run.recipe)


@pytest.mark.parametrize("path", ["pipe:touch '{}'", "pipe:touch '{}' #.tar", "|touch '{}'", "$(touch '{}').tar"])
def test_command_instead_of_a_path_is_not_executed(trace, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"(no such|not a) file or folder"):
        open_source(path.format(trace))
    recipe = {"data": {"train": path.format(trace)}, "schedule": {"steps": 1, "warmup_steps": 0}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=r"(no such|not a) file or folder"):
        open_source(load_recipe(tmp_path / "recipe.yaml").data.train)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"{}",
        b"\x00" * 100,
        b'{"model": null}',
        b"[" * 100_000,
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}).encode(),
    ],
    ids=["nothing", "empty", "zeros", "null", "deep", "no words"],
)
def test_invalid_tokenizer_file_raises(run, rubbish):
    (run.checkpoint / MANIFEST).unlink()
    (run.checkpoint / "tokenizer.json").write_bytes(rubbish)
    with pytest.raises(UserError, match="tokenizer"):
        from_pretrained(run.checkpoint)


@pytest.mark.parametrize(
    "rubbish", ["[" * 100_000, "{}}", '{"step": "1"}', '{"step": 1, "code": "x"}', '{"window": 3}']
)
def test_invalid_progress_file_raises(run, rubbish):
    (run.checkpoint / MANIFEST).unlink()
    (run.checkpoint / "training" / "progress.json").write_text(rubbish)
    with pytest.raises(UserError, match=r"progress\.json"):
        go_on(run)
