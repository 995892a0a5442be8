"""`grr-coca pretrain` and `grr-coca finetune`."""

import shutil
from dataclasses import replace

import pytest
from support import differing, finetuning, real_pairs, snapshot, tiny_recipe, weights, write_shard

from grr_coca.common.files import MANIFEST
from grr_coca.model.checkpoint import from_pretrained, save_checkpoint
from grr_coca.train.recipe import load_recipe, save_recipe


@pytest.fixture
def recipe_file(tmp_path):
    """Write a recipe file of a run of three steps, with changes."""
    shard = write_shard(tmp_path / "data" / "pairs.tar", real_pairs(24))

    def write(name="mine.yaml", edit=lambda recipe: recipe, **changes):
        path = tmp_path / name
        save_recipe(edit(tiny_recipe(shard, steps=3, **changes)), path)
        return path

    return write


@pytest.fixture
def finetune_file(recipe_file):
    return recipe_file("tune.yaml", finetuning)


# --- Runs


def test_default_run_folder_is_named_after_recipe_and_preset(grr_coca, recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = grr_coca("pretrain", recipe_file("tiny.yaml"))
    assert result.code == 0, result.err
    assert result.out == "checkpoint, log and recipe are in runs/tiny-grr_coca\n"
    assert from_pretrained(tmp_path / "runs" / "tiny-grr_coca").step == 3


def test_options_override_the_recipe_and_are_saved(grr_coca, recipe_file, tmp_path):
    other = write_shard(tmp_path / "other.tar", real_pairs(165, "health"))
    options = ["--preset", "baseline_coca", "--data", other, "--seed", 5, "--out", tmp_path / "run"]
    result = grr_coca("pretrain", recipe_file(), *options)
    assert result.code == 0, result.err
    written = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (written.model.preset, written.data.train, written.data.val, written.seed) == (
        "baseline_coca",
        str(other),
        None,
        5,
    )
    assert from_pretrained(tmp_path / "run").preset == "baseline_coca"


@pytest.mark.parametrize("data", ["../pairs/of health.tar", "cache:of health.tar"])
def test_run_continues_with_the_data_of_the_same_command(grr_coca, recipe_file, tmp_path, monkeypatch, data):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / ("grr-coca" if data.startswith("cache:") else "pairs")
    shard = write_shard(folder / "of health.tar", real_pairs(165, "health"))
    command = ["pretrain", recipe_file(), "--data", data, "--out", tmp_path / "run", "--resume"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        result = grr_coca(*command)
        assert result.code == 0, result.err
    assert load_recipe(tmp_path / "run" / "recipe.yaml").data.train == str(shard)


def test_fine_tuning_does_not_change_its_start_checkpoint(grr_coca, finetune_file, run, tmp_path):
    before = snapshot(run.folder)
    result = grr_coca("finetune", finetune_file, "--checkpoint", run.folder, "--out", tmp_path / "tuned", "--no-adapt")
    assert result.code == 0, result.err
    start, tuned = from_pretrained(run.folder), from_pretrained(tmp_path / "tuned")
    assert tuned.step == start.step + 3
    assert tuned.tokenizer.to_json() == start.tokenizer.to_json()
    assert differing(weights(start), weights(tuned))
    assert snapshot(run.folder) == before


@pytest.mark.ci
def test_fine_tuning_is_not_resumed_from_another_checkpoint(grr_coca, refused, finetune_file, run, tmp_path):
    start = shutil.copytree(run.checkpoint, tmp_path / "start")
    command = ["finetune", finetune_file, "--out", tmp_path / "tuned", "--no-adapt", "--resume", "--checkpoint"]
    for same in (start, start, run.folder):
        assert grr_coca(*command, same).code == 0, "the same weights in another place are the same"
    other = tmp_path / "other"
    save_checkpoint(replace(from_pretrained(start), step=7), other)
    message = refused(*command, other)
    assert (
        f"{tmp_path / 'tuned' / 'start.json'}: this run started from {start}, whose files differ from those" in message
    )
    assert f"of {other}; to continue that run, pass the same --checkpoint" in message
    (other / MANIFEST).unlink()
    assert "pass the same --checkpoint" in refused(*command, other)
    (tmp_path / "tuned" / "start.json").unlink()
    assert grr_coca(*command, other).code == 0, "as runs that began before"


# --- Dry runs


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_dry_run_prints_memory_steps_and_time_only(grr_coca, recipe_file, finetune_file, run, tmp_path, verb):
    path = recipe_file() if verb == "pretrain" else finetune_file
    start = ["--checkpoint", run.folder] if verb == "finetune" else []
    before = snapshot(tmp_path), snapshot(run.folder)
    result = grr_coca(verb, path, *start, "--out", tmp_path / "run", "--dry-run")
    assert result.code == 0, result.err
    forecast = {line[:13].strip(): line[13:] for line in result.out.splitlines()}
    assert forecast.keys() == {"model", "first loss", "data", "steps", "peak memory", "time"}
    assert forecast["steps"].startswith("3, 1.0 epochs")
    assert forecast["data"].startswith("24 pairs, 8 per batch")
    assert "GiB" in forecast["peak memory"]
    assert "s per step" in forecast["time"]
    assert (snapshot(tmp_path), snapshot(run.folder)) == before
    assert not (tmp_path / "run").exists()


def test_dry_run_of_a_single_step_works(grr_coca, recipe_file, tmp_path):
    path = recipe_file(edit=lambda recipe: replace(recipe, schedule=replace(recipe.schedule, steps=1)))
    assert grr_coca("pretrain", path, "--dry-run").code == 0


def test_dry_run_rejects_the_same_input_as_a_run(refused, recipe_file):
    few = recipe_file(edit=lambda recipe: replace(recipe, data=replace(recipe.data, val=None)))
    assert "evaluation: batch_size) to 6 or less" in refused("pretrain", few, "--dry-run")


# --- Wrong use


def test_invalid_sizes_raise_before_pairs_are_read(refused, recipe_file, monkeypatch):
    monkeypatch.setattr("grr_coca.train.setup.training_sources", lambda _: pytest.fail("pairs were read"))
    path = recipe_file(edit=lambda recipe: replace(recipe, model=replace(recipe.model, image_size=20)))
    assert f"{path}: model: image_size 20 must be divisible by patch_size 16; use 16 or 32" in refused("pretrain", path)


def test_run_folder_that_holds_a_run_is_not_written_over(refused, recipe_file, run):
    before = snapshot(run.folder)
    assert "already has a run" in refused("pretrain", recipe_file(), "--out", run.folder)
    assert snapshot(run.folder) == before


def test_fine_tuning_from_another_preset_names_both(refused, recipe_file, run):
    other = recipe_file(
        edit=lambda recipe: replace(recipe, tokenizer=None, model=replace(recipe.model, preset="baseline_coca"))
    )
    message = refused("finetune", other, "--checkpoint", run.folder)
    assert "'grr_coca'" in message
    assert "'baseline_coca'" in message
