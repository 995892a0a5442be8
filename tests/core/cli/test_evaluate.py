"""`grr-coca evaluate` and `compare`: what they measure, and what they refuse."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import finished_run, real_pairs, with_caption, write_shard

from grr_coca.model.checkpoint_files import DEFAULT

WEIGHTS = "model.safetensors"
LABELS = ("cat", "heart", "star")


@pytest.fixture
def split(tmp_path):
    return write_shard(tmp_path / "test.tar", real_pairs(16, split="test"))


@pytest.fixture
def labelled(tmp_path):
    """Sixteen images, each captioned with one of three labels."""
    pairs = [with_caption(pair, LABELS[i % 3]) for i, pair in enumerate(real_pairs(16, split="test"))]
    return write_shard(tmp_path / "labelled.tar", pairs)


@pytest.fixture
def evaluate(grr_coca, run):
    """Evaluate and read the JSON of one split."""

    def evaluated(task, path, *options):
        outcome = grr_coca("evaluate", run.folder, "--task", task, "--data", path, *options, "--json", "--no-baselines")
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)[str(path)]

    return evaluated


@pytest.fixture
def diverged(run, tmp_path):
    """A checkpoint whose weights are numbers no more."""
    folder = tmp_path / "diverged"
    shutil.copytree(run.checkpoint, folder)
    (folder / "manifest.json").unlink()
    weights = load_file(folder / WEIGHTS)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, folder / WEIGHTS)
    return folder


def is_interval(found) -> bool:
    return found.keys() == {"value", "low", "high"} and found["low"] <= found["high"]


# --- loss


def test_losses_have_intervals(evaluate, split):
    found = evaluate("loss", split, "--batch-size", 8)
    assert found["intervals"]["perplexity"]["value"] == pytest.approx(found["perplexity"], rel=1e-5)
    assert all(map(is_interval, found["intervals"].values()))
    assert found["median_rank"].keys() == {"text_to_image", "image_to_text"}


def test_missing_numbers_are_null_in_json(grr_coca, diverged, split):
    outcome = grr_coca("evaluate", diverged, "--data", split, "--batch-size", 8, "--json")
    found = json.loads(outcome.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))[str(split)]
    assert found["contrastive_loss"] is None
    assert found["intervals"]["coca_loss"] == {"value": None, "low": None, "high": None}
    assert found["num_pairs"] == 16


def test_table_and_json_have_the_same_numbers(grr_coca, run, split):
    options = ["evaluate", run.folder, "--data", split, "--batch-size", 8, "--no-baselines"]
    result = json.loads(grr_coca(*options, "--json").out)[str(split)]
    assert (result["num_pairs"], result["contrastive_batch_size"]) == (16, 8)
    assert result["text_to_image"].keys() == {"R@1", "R@5", "R@10"}
    outcome = grr_coca(*options)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(str(split))
    for words in ("contrastive loss", "(batches of 8 pairs)", "perplexity", "CoCa loss", "text to image", "chance"):
        assert words in outcome.out
    assert f"{result['perplexity']:.4f}" in outcome.out


def test_evaluate_accepts_a_model_name(grr_coca, split):
    outcome = grr_coca("evaluate", DEFAULT, "--data", split, "--batch-size", 8, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)


# --- retrieval


def test_retrieval_states_the_conditions(evaluate, split):
    found = evaluate("retrieval", split)
    assert found["task"] == "retrieval"
    assert found["depends_on"] == {
        "images": 16,
        "captions": 16,
        "right answers": "an image's own captions alone",
    }
    assert found["plain"]["text_to_image/chance/R@1"] == pytest.approx(1 / 16)
    assert all(map(is_interval, found["metrics"].values()))
    assert len(found["metrics"]) == 6


# --- captioning


def test_captioning_prints_metrics_and_writes_captions(grr_coca, run, split, tmp_path):
    out = tmp_path / "new" / "captions.jsonl"
    outcome = grr_coca("evaluate", run.folder, "--task", "captioning", "--data", split, "--out", out, "--no-baselines")
    assert outcome.code == 0, outcome.err
    for words in ("CIDEr ", "CIDEr-D", "BLEU-1", "BLEU-4", "ROUGE-L", "(images: 16)", "(decoding: greedy)", "95 %"):
        assert words in outcome.out
    assert len(out.read_text().splitlines()) == 16


def test_splits_can_be_passed_one_after_the_other(grr_coca, run, split):
    command = ["evaluate", run.folder, "--json", "--batch-size", 8, "--no-baselines"]
    at_once = grr_coca(*command, "--data", split, run.shard)
    assert json.loads(at_once.out).keys() == {str(split), str(run.shard)}
    assert grr_coca(*command, "--data", split, "--data", run.shard) == at_once


# --- zeroshot


def test_zeroshot_takes_labels_and_templates_from_files(evaluate, labelled, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join([*LABELS, "moon", "sun", "dog"]))
    (tmp_path / "templates.txt").write_text("{}\na {}.\n")
    options = ["--labels", tmp_path / "labels.txt", "--templates", tmp_path / "templates.txt"]
    found = evaluate("zeroshot", labelled, *options)
    assert found["depends_on"] == {"images": 16, "classes": 6, "templates": 2}
    assert found["metrics"].keys() == {"top-1", "top-5", "mean_per_class"}
    assert found["plain"] == {"chance": pytest.approx(1 / 6)}


def test_classes_without_a_file_are_those_in_the_data(evaluate, labelled):
    assert evaluate("zeroshot", labelled)["depends_on"]["classes"] == 3


# --- probe


@pytest.mark.ci
def test_probe_is_trained_on_one_split_and_tested_on_another(evaluate, labelled, tmp_path):
    train = write_shard(
        tmp_path / "train.tar", [with_caption(pair, LABELS[i % 3]) for i, pair in enumerate(real_pairs(24))]
    )
    found = evaluate("probe", labelled, "--train", train)
    assert found["metrics"].keys() == {"linear probe"}
    assert found["depends_on"]["training images"] == 24
    assert found["plain"]["most frequent class"] == pytest.approx(6 / 16)


# --- compare


def test_comparison_shows_percentages_and_paired_differences(grr_coca, run, baseline, split):
    outcome = grr_coca(
        "compare", run.folder, baseline.folder, "--data", split, run.shard, "--batch-size", 8, "--no-baselines"
    )
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    first, second, average = (line for line in lines if "%" in line)
    assert any("grr" in line and "baseline" in line and "change" in line for line in lines)
    assert first.startswith(str(split))
    assert second.startswith(str(run.shard))
    assert average.startswith("average")
    assert all(line.count("%") == 6 for line in (first, second, average))
    assert "changes over baseline_coca" in outcome.out
    (paired,) = (line for line in lines if line.startswith(f"{split}: contrastive loss "))
    assert paired.count("[") == 4


def test_comparison_with_itself_has_no_differences(grr_coca, run, split):
    outcome = grr_coca("compare", run.folder, run.folder, "--data", split, "--batch-size", 8, "--no-baselines")
    assert outcome.out.count("+0.00%") == 3
    assert outcome.out.splitlines()[-1].count("+0.000 [+0.000, +0.000]") == 4


def test_contrastive_losses_of_0_are_compared(grr_coca, run, split):
    outcome = grr_coca("compare", run.folder, run.folder, "--data", split, "--batch-size", 1, "--no-baselines")
    assert outcome.code == 0, outcome.err
    assert "0.000 0.000 –" in " ".join(outcome.out.split())


def test_compared_models_keep_the_given_names(grr_coca, run, split):
    outcome = grr_coca("compare", run.folder, run.checkpoint, "--data", split, "--batch-size", 8, "--no-baselines").out
    assert f"changes over {run.checkpoint}" in outcome
    heads = outcome.splitlines()[1].split()
    assert str(run.folder) in heads
    assert str(run.checkpoint) in heads


@pytest.mark.ci
@pytest.mark.parametrize(
    ("vocab_size", "context_length", "why"),
    [
        (300, None, "are means over tokens of different vocabularies"),
        (None, 6, "are of captions truncated to different lengths (contexts of 24 and 6 tokens)"),
    ],
)
def test_perplexities_over_different_tokens_are_not_compared(
    grr_coca, run, split, tmp_path, vocab_size, context_length, why
):
    model, tokenizer = run.recipe.model, run.recipe.tokenizer
    other = finished_run(
        tmp_path,
        steps=1,
        tokenizer=replace(tokenizer, vocab_size=vocab_size or tokenizer.vocab_size),
        model=replace(model, context_length=context_length or model.context_length),
    )
    outcome = grr_coca("compare", run.folder, other.folder, "--data", split, "--batch-size", 8, "--no-baselines")
    assert f"perplexity and CoCa loss {why}, and cannot be compared" in outcome.out
    line = outcome.out.splitlines()[-1]
    assert "perplexity" not in line
    assert "CoCa" not in line
    assert line.count("[") == 2
    result = grr_coca("compare", run.folder, other.folder, "--data", split, "--batch-size", 8, "--json")
    found = json.loads(result.out)[str(split)]
    assert found["incomparable"] == {"perplexity": why, "coca_loss": why}
    assert found["differences"].keys() == found["metrics"][0].keys() - {"perplexity", "coca_loss"}


def test_model_that_diverged_is_compared(grr_coca, run, diverged, split):
    outcome = grr_coca("compare", diverged, run.folder, "--data", split, "--batch-size", 8, "--no-baselines")
    assert outcome.code == 0, outcome.err
    assert "nan" in outcome.out


def test_json_of_a_comparison_has_all_metrics_of_both(grr_coca, evaluate, run, baseline, split):
    outcome = grr_coca(
        "compare", run.folder, baseline.folder, "--data", split, "--batch-size", 8, "--no-baselines", "--json"
    )
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)[str(split)]
    assert found["models"] == [str(run.folder), str(baseline.folder)]
    assert found["metrics"][0] == evaluate("loss", split, "--batch-size", 8)["intervals"]
    assert found["differences"].keys() == found["metrics"][1].keys()
    assert {f"{way}/R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)} < found[
        "differences"
    ].keys()
    assert found["incomparable"] == {}
    assert all(map(is_interval, found["differences"].values()))
