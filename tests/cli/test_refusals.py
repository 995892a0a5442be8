"""What the commands refuse: one line that names the way out, exit code 2, and nothing is written."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from support import finetuning, real_pairs, refusals, snapshot, tiny_recipe, write_shard, write_tar

from grr_coca.train.recipe import save_recipe

INPUTS = [
    "caption rows.jsonl -c $RUN --out rows.jsonl",
    "embed rows.parquet -c $RUN --out rows.parquet",
    "embed --texts v.keys.txt -c $RUN --out v.npy",
    "explain images/0.webp -c $RUN --out link.png",
    "evaluate $RUN --task captioning --data pairs.csv --out pairs.csv",
    "evaluate $RUN --task captioning --data dataset_coco.json#val --out dataset_coco.json",
]
"""Commands whose output is one of the files that they read."""

BELOW_A_FILE = [
    "caption images -c $RUN --out file/a.csv",
    "embed images -c $RUN --out file/v.npy",
    "embed --texts twice.txt -c $RUN --out file/v.npy",
    "explain images/0.webp -c $RUN --out file/maps.png",
    "evaluate $RUN --task captioning --data split.tar --out file/c.jsonl",
    "export index $INDEX --out file/a.parquet",
]
"""Commands whose output has no place."""


@pytest.fixture
def workspace(tmp_path, image_files, monkeypatch):
    """The current folder, with files of the kinds that commands read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no picture")
    for name in ("folder.csv", "folder.npy"):
        (tmp_path / name).mkdir()
    (tmp_path / "twice.txt").write_text("cat\ndog\nCat\nred  heart\nred heart\nbird\n")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    write_tar(tmp_path / "shard.tar", {"1.webp": real_pairs(1)[0].image})
    write_shard(tmp_path / "split.tar", real_pairs(16, split="test"))
    return tmp_path


@pytest.fixture
def fill_paths(run, drawings):
    """Insert the paths of a finished run and of an index into a text."""
    return lambda text: text.replace("$RUN", str(run.folder)).replace("$INDEX", str(drawings / "index"))


def state(folder):
    return sorted(folder.rglob("*")), snapshot(folder)


@pytest.mark.parametrize(("command", "template"), refusals(Path(__file__).with_name("refusals.txt")))
def test_invalid_use_reports_one_line_and_writes_nothing(refused, workspace, fill_paths, drawings, command, template):
    if command.startswith(("pretrain", "finetune")):
        recipe = tiny_recipe(write_shard(workspace / "data" / "pairs.tar", real_pairs(24)), steps=3)
        save_recipe(recipe, workspace / "mine.yaml")
        save_recipe(finetuning(recipe), workspace / "tune.yaml")
    before = state(workspace)
    message = re.sub(r"\([0-9a-f]{8}\)", "($HASH)", refused(*shlex.split(fill_paths(command))))
    expected = fill_paths(template).replace("$PLACE", str(drawings)).replace("$HERE", str(workspace))
    assert message == f"{expected}\n"
    assert state(workspace) == before


@pytest.mark.parametrize("command", INPUTS)
def test_inputs_of_a_command_are_not_overwritten(refused, workspace, fill_paths, command):
    import pyarrow.parquet

    images = [str(path) for path in sorted((workspace / "images").iterdir())]
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), workspace / "rows.parquet")
    (workspace / "rows.jsonl").write_text(json.dumps({"image": images[0], "caption": "a", "log_prob": -1.0}) + "\n")
    (workspace / "v.keys.txt").write_text("a cat\n")
    (workspace / "pairs.csv").write_text("image,caption\na.png,a cat\n")
    (workspace / "dataset_coco.json").write_text("{}")
    (workspace / "link.png").symlink_to("images/0.webp")
    before = state(workspace)
    assert "this input would be overwritten" in refused(*shlex.split(fill_paths(command)))
    assert state(workspace) == before


@pytest.mark.parametrize("command", BELOW_A_FILE)
def test_rejects_an_unwritable_path_before_the_work(refused, workspace, fill_paths, monkeypatch, command):
    for work in ("grr_coca.load", "grr_coca_search.index.Index.search", "grr_coca_search.portable.export_parquet"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("too late"))
    monkeypatch.setattr("grr_coca.evaluate.caption_split.caption_split", lambda *_, **__: pytest.fail("too late"))
    out = command.split()[-1]
    assert f"{out}: cannot be written (file is a file, not a folder)" in refused(*shlex.split(fill_paths(command)))


@pytest.mark.parametrize("command", ["caption images -c $RUN --out pipe.csv", "embed images -c $RUN --out pipe.npy"])
def test_pipe_is_not_replaced_by_a_file(refused, workspace, fill_paths, monkeypatch, command):
    monkeypatch.setattr("grr_coca.load", lambda *_: pytest.fail("too late"))
    pipe = workspace / command.split()[-1]
    os.mkfifo(pipe)
    (workspace / f"link{pipe.suffix}").symlink_to(pipe)
    for out in (pipe, workspace / f"link{pipe.suffix}"):
        message = refused(*shlex.split(fill_paths(command))[:-1], out)
        assert f"{out}: expected a regular file, found a device or a pipe" in message
    assert pipe.is_fifo()
