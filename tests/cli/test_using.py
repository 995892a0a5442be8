"""`grr-coca caption`, `evaluate`, `compare` and `info`: what is done with what was trained."""

import json

import pytest

from grr_coca.cli import caption
from grr_coca.presets import PRESETS
from support import real_pairs, write_shard


@pytest.fixture
def image_files(tmp_path):
    paths = [tmp_path / f"{pair.key}.webp" for pair in real_pairs(3)]
    for path, pair in zip(paths, real_pairs(3), strict=True):
        path.write_bytes(pair.image)
    return paths


@pytest.fixture
def split(tmp_path):
    return write_shard(tmp_path / "test.tar", real_pairs(16, split="test"))


# --- caption


def test_each_image_gets_a_line_with_its_path_and_its_caption(grr_coca, run, image_files):
    said = grr_coca("caption", "--checkpoint", run.folder, *image_files)
    assert said.code == 0, said.err
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in image_files]
    assert all(len(line) == 2 for line in lines)


def test_the_short_flag_and_the_checkpoint_folder_itself_work_too(grr_coca, run, image_files):
    long = grr_coca("caption", "--checkpoint", run.folder, *image_files)
    assert grr_coca("caption", "-c", run.checkpoint, *image_files).out == long.out


def test_more_images_than_a_batch_give_the_same_captions(grr_coca, run, image_files, monkeypatch):
    together = grr_coca("caption", "-c", run.folder, *image_files).out
    monkeypatch.setattr(caption, "BATCH_SIZE", 2)
    assert grr_coca("caption", "-c", run.folder, *image_files).out == together


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", real_pairs(1)[0].image[:200]], ids=["empty", "HTML", "half"]
)
def test_a_bad_image_is_named(refused, run, image_files, content):
    image_files[1].write_bytes(content)
    assert str(image_files[1]) in refused("caption", "-c", run.folder, *image_files)


def test_a_missing_image_is_named(refused, run, tmp_path):
    assert f"{tmp_path / 'cat.png'}: no such file" in refused("caption", "-c", run.folder, tmp_path / "cat.png")


def test_a_folder_in_place_of_an_image_is_named(refused, run, tmp_path):
    assert str(tmp_path) in refused("caption", "-c", run.folder, tmp_path)


def test_no_image_is_refused(refused, run):
    assert "give one or more image files" in refused("caption", "-c", run.folder)


def test_a_missing_checkpoint_is_named(refused, tmp_path, image_files):
    message = refused("caption", "-c", tmp_path / "nowhere", *image_files)
    assert f"{tmp_path / 'nowhere'}: no such folder" in message


# --- evaluate


def test_an_evaluation_for_people_names_losses_and_chance(grr_coca, run, split):
    said = grr_coca("evaluate", run.folder, "--data", split, "--batch-size", 8)
    assert said.code == 0, said.err
    assert said.out.startswith(str(split))
    for words in ("contrastive loss", "(batches of 8 pairs)", "perplexity", "CoCa loss", "text to image", "chance"):
        assert words in said.out


def test_an_evaluation_for_programs_is_json_with_the_same_numbers(grr_coca, run, split):
    options = ["evaluate", run.folder, "--data", split, "--batch-size", 8]
    result = json.loads(grr_coca(*options, "--json").out)[str(split)]
    assert result["num_pairs"] == 16
    assert result["contrastive_batch_size"] == 8
    assert result["text_to_image"].keys() == {"R@1", "R@5", "R@10"}
    assert f"{result['perplexity']:.4f}" in grr_coca(*options).out


def test_several_splits_are_evaluated_by_name(grr_coca, run, split):
    said = grr_coca("evaluate", run.folder, "--data", split, run.shard, "--batch-size", 8, "--json")
    assert json.loads(said.out).keys() == {str(split), str(run.shard)}


def test_nothing_to_evaluate_on_is_refused(refused, run):
    assert "give --data PATH" in refused("evaluate", run.folder)


def test_a_split_smaller_than_a_batch_is_refused(refused, run, split):
    assert "16 or less" in refused("evaluate", run.folder, "--data", split)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing_is_refused(refused, run, split, batch_size):
    assert "batch" in refused("evaluate", run.folder, "--data", split, "--batch-size", batch_size)


# --- compare


def test_a_comparison_shows_the_change_in_per_cent(grr_coca, run, baseline, split):
    said = grr_coca("compare", run.folder, baseline.folder, "--data", split, run.shard, "--batch-size", 8)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    first, second, average = (line for line in lines if "%" in line)
    assert any("grr" in line and "baseline" in line and "change" in line for line in lines)
    assert first.startswith(str(split))
    assert second.startswith(str(run.shard))
    assert average.startswith("average")
    assert all(line.count("%") == 6 for line in (first, second, average))
    assert "changes over baseline_coca" in said.out


def test_a_checkpoint_held_against_itself_has_not_changed(grr_coca, run, split):
    said = grr_coca("compare", run.folder, run.folder, "--data", split, "--batch-size", 8)
    assert said.out.count("+0.00%") == 3


def test_comparing_on_nothing_is_refused(refused, run, baseline):
    assert "give --data PATH" in refused("compare", run.folder, baseline.folder)


# --- info


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_info_shows_parts_parameters_and_flops_of_every_preset(grr_coca, preset):
    said = grr_coca("info", preset)
    assert said.code == 0, said.err
    for words in (f"{preset}, size tiny", "image_encoder", "blocks × 4", "captioning_pooler", "total", "GFLOP forward"):
        assert words in said.out


def test_info_of_two_presets_shows_what_they_differ_in(grr_coca):
    said = grr_coca("info", "grr_coca", "baseline_coca")
    assert said.code == 0, said.err
    for words in ("grr_coca against baseline_coca", "image_encoder", "all parameters", "FLOPs per pair", "rope_2d"):
        assert words in said.out
    assert "text_decoder." not in said.out


@pytest.mark.parametrize("arguments", [["grr_coc"], ["grr_coca", "baselin_coca"], ["grr_coca", "--size", "tini"]])
def test_info_of_what_does_not_exist_names_the_nearest(refused, arguments):
    assert "did you mean" in refused("info", *arguments)
