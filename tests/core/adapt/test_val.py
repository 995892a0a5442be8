"""`adapt --val`, and a base that was fine-tuned on the same pairs: both measure by pairs that were not fitted."""

import io
import json
from dataclasses import replace

import pytest
from adapted import NUM_PAIRS, NUM_UNSEEN
from PIL import Image
from support import encode_image, real_pairs, snapshot, write_shard

from grr_coca import load
from grr_coca.cli import main
from grr_coca.infer.adapted.adaptation import read_features
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import fingerprint

PAIRS = real_pairs(60, "glyphs")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Unseen pairs with captions that no pair of the fit has."""
    pairs = real_pairs(NUM_PAIRS + NUM_UNSEEN, "glyphs")
    known = {pair.caption for pair in pairs[:NUM_PAIRS]}
    kept = [pair for pair in pairs[NUM_PAIRS:] if pair.caption not in known]
    return write_shard(tmp_path_factory.mktemp("fresh") / "fresh.tar", kept)


@pytest.fixture(scope="module")
def measured(fresh, tmp_path_factory):
    """Adapted to the pairs and measured by fresh ones."""
    out = tmp_path_factory.mktemp("val") / "mine"
    options = ["--val", str(fresh), "--out", str(out)]
    pairs = write_shard(out.parent / "pairs.tar", PAIRS)
    assert main(["adapt", str(pairs), *options]) == 0
    return out


@pytest.mark.ci
def test_report_equals_evaluate_on_val(grr_coca, fresh, measured):
    result = grr_coca("compare", measured, "icons", "--data", fresh, "--json")
    found = json.loads(result.out)[str(fresh)]
    figures = json.loads((measured / "adapted.json").read_text(encoding="utf-8"))["figures"]
    for own, method in zip(found["metrics"], ("adapted", "as shipped"), strict=True):
        for name in ("text_to_image/R@1", "text_to_image/R@10", "image_to_text/R@10"):
            assert figures[f"new/{method}"][name] == pytest.approx(own[name]["value"], abs=2.5 / 50)


@pytest.mark.ci
def test_pairs_of_val_are_neither_fitted_nor_stored(measured):
    header = json.loads((measured / "adapted.json").read_text(encoding="utf-8"))
    fitted = {pair.caption for pair in PAIRS}
    assert header["num_images"] == len(PAIRS) == len(read_features(measured))
    assert set(header["captions"]) == fitted
    words = {word for caption in header["captions"] for word in caption.split()}
    assert set(header["words"]) <= {part for word in words for part in word.lower().replace("-", " ").split()}
    model = load(measured)
    assert len(model.adaptation.arrays.caption_vectors) == len(header["captions"])


@pytest.mark.ci
def test_pairs_that_are_in_val_too_are_held_out(grr_coca, place, tmp_path):
    pairs = real_pairs(NUM_PAIRS, "glyphs")
    write_shard(tmp_path / "some.tar", pairs[:40])
    result = grr_coca(
        "adapt", place / "pairs.tar", "--val", tmp_path / "some.tar", "--out", tmp_path / "mine", "--json"
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["images"] == NUM_PAIRS - 40
    assert 30 <= report["held_out_images"] <= 40


@pytest.mark.ci
def test_val_of_copies_only_is_an_error(grr_coca, place, tmp_path):
    pair = real_pairs(1, "glyphs")[0]
    image = Image.open(io.BytesIO(pair.image)).convert("RGB")
    write_shard(tmp_path / "copies.tar", [replace(pair, image=encode_image(image))])
    result = grr_coca("adapt", place / "pairs.tar", "--val", tmp_path / "copies.tar", "--out", tmp_path / "mine")
    assert result.code == 2
    assert "no held-out image can be used, or all of them are near-equal to images of the pairs; pass" in result.err


# --- A base that was fine-tuned on the pairs


@pytest.mark.ci
def test_fine_tuned_base_is_measured_on_held_out_pairs(grr_coca, place, run, tmp_path):
    result = grr_coca("adapt", place / "pairs.tar", "-c", run, "--out", tmp_path / "mine", "--json")
    assert result.code == 0, result.err
    assert "trained on some of these pairs, so it is measured on held-out pairs" in result.err
    report = json.loads(result.out)
    held = -(-NUM_PAIRS // 20)
    assert report["images"] == NUM_PAIRS - held
    assert 1 <= report["held_out_images"] <= held
    assert (report["values"]["width"], report["values"]["penalty"]) == (0.5, 0.1)
    assert load(tmp_path / "mine").caption(place / "unseen" / f"{real_pairs(160, 'glyphs')[155].key}.webp")


@pytest.mark.ci
def test_validation_excludes_training_images(grr_coca, place, run, tmp_path):
    arguments = ["adapt", place / "pairs.tar", "-c", run, "--out", tmp_path / "mine", "--json"]
    result = grr_coca(*arguments, "--val", place / "unseen.tar")
    assert result.code == 0, result.err
    assert json.loads(result.out)["held_out_images"] > 50
    write_shard(tmp_path / "seen.tar", real_pairs(20, "glyphs")[1:])
    result = grr_coca(*arguments, "--val", tmp_path / "seen.tar")
    assert result.code == 2
    assert "the run was trained on all of these pairs; pass other pairs, or omit --val" in result.err


@pytest.mark.ci
def test_other_pairs_are_divided_into_folds(grr_coca, place, run, tmp_path):
    result = grr_coca("adapt", place / "unseen.tar", "-c", run, "--out", tmp_path / "mine", "--json")
    assert result.code == 0, result.err
    assert "trained on" not in result.err
    assert json.loads(result.out)["held_out_images"] == 0


@pytest.mark.ci
def test_run_with_missing_pairs_requires_val(grr_coca, place, run, tmp_path):
    folder = tmp_path / "run"
    for name, content in snapshot(run).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe.replace("pairs.tar", "gone.tar"), encoding="utf-8")
    arguments = ["adapt", place / "pairs.tar", "-c", folder, "--out", tmp_path / "mine"]
    result = grr_coca(*arguments)
    assert result.code == 2
    assert "pass other pairs to --val" in result.err
    assert grr_coca(*arguments, "--val", place / "unseen.tar").code == 0


@pytest.mark.ci
def test_fine_tuning_ends_with_a_model_adapted_to_its_pairs(grr_coca, place, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"data: {{train: {place / 'pairs.tar'}, val: {place / 'unseen.tar'}, batch_size: 32}}\n"
        "optimizer: {name: muon, lr: 0.003}\n"
        "schedule: {steps: 3, warmup_steps: 1}\n"
        "evaluation: {interval: 10, batch_size: 16}\n"
        "precision: fp32\n"
    )
    command = ["finetune", tmp_path / "mine.yaml", "--checkpoint", "icons", "--out", tmp_path / "run"]
    result = grr_coca(*command)
    assert result.code == 0, result.err
    assert "fine-tuned " in result.out
    assert "held-out images (" in result.out
    assert "adapted from " in result.out
    assert " and its start model icons in " in result.out
    model = load(tmp_path / "run" / "adapted")
    assert model.adaptation.header.base_fingerprint == fingerprint(locate_checkpoint(tmp_path / "run"))
    assert model.adaptation.header.num_images == NUM_PAIRS
    assert (tmp_path / "run" / "adapted" / "start" / "model.safetensors").exists()
    again = grr_coca(*command[:-1], tmp_path / "other", "--no-adapt")
    assert again.code == 0
    assert not (tmp_path / "other" / "adapted").exists()
    assert grr_coca(*command, "--resume").code == 0, "a run that is done is adapted again"


@pytest.mark.ci
def test_fine_tuning_on_too_few_pairs_reports_no_adaptation(grr_coca, tmp_path):
    write_shard(tmp_path / "pairs.tar", [replace(pair, caption="one") for pair in real_pairs(30, "glyphs")])
    (tmp_path / "mine.yaml").write_text(
        f"data: {{train: {tmp_path / 'pairs.tar'}, batch_size: 4}}\n"
        "schedule: {steps: 1, warmup_steps: 0}\n"
        "evaluation: {interval: 10, batch_size: 2}\n"
        "precision: fp32\n"
    )
    result = grr_coca("finetune", tmp_path / "mine.yaml", "--checkpoint", "icons", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "not adapted to its training pairs: " in result.err
    assert "all captions are equal" in result.err
