"""`grr-coca evaluate`, `compare` and `info`: how good what was trained is."""

import json

import pytest

from grr_coca.study.forecast import MFU_OF_NARROW
from support import real_pairs, write_shard


@pytest.fixture
def split(tmp_path):
    return write_shard(tmp_path / "test.tar", real_pairs(16, split="test"))


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


def test_contrastive_losses_of_0_are_compared(grr_coca, run, split):
    said = grr_coca("compare", run.folder, run.folder, "--data", split, "--batch-size", 1)
    assert said.code == 0, said.err
    assert "0.000 0.000 –" in " ".join(said.out.split())


def test_comparing_on_nothing_is_refused(refused, run, baseline):
    assert "give --data PATH" in refused("compare", run.folder, baseline.folder)


# --- info


@pytest.mark.parametrize("preset", ["baseline_coca", "grr_coca", "grr_coca_plus"])
def test_info_shows_parts_parameters_and_flops_of_a_preset(grr_coca, preset):
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


def test_info_of_a_batch_foretells_a_training_step_on_this_machine(grr_coca, monkeypatch):
    monkeypatch.setattr("grr_coca.cli.anatomy.matmul_rate", lambda *_: 100e9)
    said = grr_coca("info", "grr_coca", "--batch", 256, "--text-length", 12)
    assert said.code == 0, said.err
    for words in ("a training step of 256 pairs", "fp32 100 GFLOP/s", "assumed", "fp32, 48 tokens", "bf16, 12 tokens"):
        assert words in said.out
    assert said.out.count("GFLOP forward") == 2
    rows = [line.split() for line in said.out.splitlines() if "images/s" in line]
    assert len(rows) == 4
    flops, seconds, rate = (float(rows[0][i].replace(",", "")) for i in (3, 5, 10))
    assert seconds == pytest.approx(flops / (100 * MFU_OF_NARROW.assumed), rel=0.01)
    assert rate == pytest.approx(256 / seconds, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        (["--batch", 0], "--batch 0 is out of range; give 1 or more"),
        (["--text-length", 3], "give 4 to 48"),
        (["--text-length", 49], "give 4 to 48"),
        (["baseline_coca", "--batch", 8], "name one"),
    ],
)
def test_info_of_a_step_that_cannot_be_names_the_way_out(refused, arguments, way_out):
    assert way_out in refused("info", "grr_coca", *arguments)


@pytest.mark.parametrize("arguments", [["grr_coc"], ["grr_coca", "baselin_coca"], ["grr_coca", "--size", "tini"]])
def test_info_of_what_does_not_exist_names_the_nearest(refused, arguments):
    assert "did you mean" in refused("info", *arguments)
