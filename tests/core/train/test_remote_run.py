"""A run on shards or tables in an object store is the run on those on disk; its folder may be copied there."""

import json
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
from jobs import differing_files
from stores import SECRET, free_port, make_impatient, s3_environment, s3_server, upload
from support import ALONE, pretrain, real_pairs, silent, snapshot, tiny_recipe, warnings_of, with_key, write_shard

from grr_coca.common import remote
from grr_coca.common.errors import UserError
from grr_coca.data.sources.open import remote_shards
from grr_coca.data.sources.shards import index_remote
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.copied_run import copy_run
from grr_coca.train.loop import train
from grr_coca.train.recipe import CheckpointRecipe, load_recipe, save_recipe
from grr_coca.train.run_checkpoints import resume_point

PAIRS = real_pairs(40)
SHARDS, TABLES = "{0..3}.tar", "{0..3}.parquet"


@pytest.fixture(scope="module")
def s3():
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def folder(tmp_path):
    """Four shards and four tables of the same pairs."""
    folder = tmp_path / "set"
    for number in range(4):
        pairs = PAIRS[10 * number : 10 * number + 10]
        write_shard(folder / f"{number}.tar", pairs)
        columns = {"image": [{"bytes": pair.image} for pair in pairs], "text": [pair.caption for pair in pairs]}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{number}.parquet", row_group_size=4)
    return folder


@pytest.fixture
def store(s3, folder, monkeypatch, tmp_path):
    """A bucket with the same files, which are indexed; and the files on disk."""
    for name, value in s3_environment(s3).items():
        monkeypatch.setenv(name, value)
    make_impatient(monkeypatch, tmp_path / "cache")
    upload(s3, "pairs", {path.name: path.read_bytes() for path in folder.iterdir()})
    for file in remote_shards(f"s3://pairs/{SHARDS}") + remote_shards(f"s3://pairs/{TABLES}"):
        index_remote(file)
    return folder


def recipe_of(path, **changes):
    recipe = with_key(tiny_recipe(path, 14, checkpoints=CheckpointRecipe(interval=3)), "data.val", None)
    return replace(with_key(recipe, "evaluation.batch_size", 2), **changes)


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ci
@pytest.mark.parametrize(("files", "num_workers"), [(SHARDS, 2), (TABLES, 0)])
def test_run_from_an_object_store_equals_one_from_disk(store, tmp_path, files, num_workers):
    pretrain(recipe_of(store / files), tmp_path / "disk")
    elsewhere = with_key(recipe_of(f"s3://pairs/{files}"), "data.num_workers", num_workers)
    pretrain(elsewhere, tmp_path / "s3")
    assert len(log_of(tmp_path / "disk")) >= 2
    assert (tmp_path / "s3" / "metrics.jsonl").read_bytes() == (tmp_path / "disk" / "metrics.jsonl").read_bytes()
    folders = [tmp_path / name / "checkpoints" / "step-000000014" for name in ("disk", "s3")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    for content in snapshot(tmp_path / "s3").values():
        assert SECRET.encode() not in content
    for content in snapshot(tmp_path / "cache").values():
        assert SECRET.encode() not in content


@pytest.mark.ci
def test_run_from_an_object_store_is_resumed_exactly(store, tmp_path):
    recipe = recipe_of(f"s3://pairs/{SHARDS}")
    pretrain(recipe, tmp_path / "whole")

    def stop(done, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path / "stopped", stop)  # at step 10, after the checkpoint of step 9
    point = resume_point(tmp_path / "stopped", recipe)
    assert point is not None
    assert point.name == "step-000000009"
    train(recipe, from_pretrained(point), tmp_path / "stopped", ALONE, silent, point)
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    last = "checkpoints/step-000000014"
    assert differing_files(snapshot(tmp_path / "stopped" / last), snapshot(tmp_path / "whole" / last)) == []


@pytest.mark.ci
def test_run_is_not_resumed_with_other_shards(store, tmp_path, s3):
    recipe = recipe_of(f"s3://pairs/{SHARDS}")
    pretrain(recipe, tmp_path / "run")
    upload(s3, "pairs", {"1.tar": (store / "0.tar").read_bytes()})
    for file in remote_shards(f"s3://pairs/{SHARDS}"):
        index_remote(file)
    point = resume_point(tmp_path / "run", recipe)
    assert point is not None
    with pytest.raises(UserError, match=r"s3://pairs/\{0\.\.3\}\.tar: data: train of the run: .* changed since"):
        train(recipe, from_pretrained(point), tmp_path / "run", ALONE, silent, point)


@pytest.mark.ci
@pytest.mark.parametrize("url", ["memory://runs/mine", pytest.param("s3://pairs/runs/mine", marks=pytest.mark.ci)])
def test_run_folder_is_copied_after_each_checkpoint(request, folder, tmp_path, url):
    """The copy has the same checkpoints as the run, and a complete checkpoint is not copied again."""
    if url.startswith("s3"):
        request.getfixturevalue("store")
    checkpoints = CheckpointRecipe(interval=3, keep_last=2, copy_to=url)
    pretrain(recipe_of(folder / SHARDS, checkpoints=checkpoints), tmp_path / "run")
    here = {name: len(content) for name, content in snapshot(tmp_path / "run").items()}
    assert remote.list_file_sizes(url) == here
    assert len({name.split("/")[1] for name in here if name.startswith("checkpoints/")}) == 2
    last = "checkpoints/step-000000014"
    for removed, is_copied in (("model.safetensors", False), ("manifest.json", True)):
        remote.remove_file(f"{url}/{last}/{removed}")
        copy_run(tmp_path / "run", f"{url}/")
        assert (remote.list_file_sizes(url) == here) is is_copied


@pytest.mark.ci
def test_run_continues_if_its_copy_cannot_be_written(store, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(remote, "_filesystems", {})
    monkeypatch.setattr(remote, "SECONDS_TO_ANSWER", 0.5)
    checkpoints = CheckpointRecipe(interval=100, copy_to="s3://nowhere/mine")
    with warnings_of("grr_coca.train.copied_run") as warnings:
        pretrain(recipe_of(store / SHARDS, checkpoints=checkpoints), tmp_path / "run")
    assert "s3://nowhere/mine" in warnings[0]
    assert "the run continues" in warnings[0]
    assert (tmp_path / "run" / "checkpoints" / "step-000000014").is_dir()


def test_url_stays_a_url_in_the_recipe(tmp_path):
    recipe = recipe_of(f"s3://pairs/{SHARDS}")
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml").data.train == f"s3://pairs/{SHARDS}"
    save_recipe(recipe_of(f"https://host/a.tar?token={SECRET}"), tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"recipe\.yaml: https://host/a\.tar: has a query") as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["runs/mine", "https://host/runs", f"https://a:{SECRET}@host/runs", f"s3://a:{SECRET}@bucket/run"]
)
def test_url_that_is_no_object_store_raises(url):
    with pytest.raises(UserError) as caught:
        CheckpointRecipe(copy_to=url)
    assert SECRET not in str(caught.value)
    assert "copy_to" in str(caught.value) or "omit it" in str(caught.value)
