"""The script that makes a run a bundled model."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support import DATASETS, finished_run

import fitting
import ship
from grr_coca.common.errors import UserError
from grr_coca.common.files import verify_folder
from grr_coca.data.sources.open import open_source
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import (
    FILES,
    GRAPHS,
    bundled_folder,
    bundled_models,
    fingerprint,
)
from grr_coca.train.recipe import CheckpointRecipe

WORDS = {
    key: f"the {key}" for key in ("summary", "data", "licence", "recipe", "reproduce", "training", "uses", "licences")
}


def write_names(checkpoint, folder):
    """Instead of exporting, which takes a minute and has tests of its own."""
    for name in GRAPHS:
        (folder / f"{name}.onnx").write_text(f"{name} of {checkpoint.preset}")


def test_mean_covers_all_stored_checkpoints(tmp_path):
    """And nothing but the weights is."""
    run = finished_run(tmp_path, steps=3, checkpoints=CheckpointRecipe(interval=1, keep_last=3)).folder
    kept = [from_pretrained(run / "checkpoints" / f"step-{step:09}").model.state_dict() for step in (1, 2, 3)]
    mean = ship.mean_of_checkpoints(run)
    assert mean.step == 3
    moved = 0
    for name, parameter in mean.model.named_parameters():
        torch.testing.assert_close(parameter.data, sum(weights[name] for weights in kept) / 3)
        moved += not torch.allclose(parameter, kept[-1][name])
    assert moved > 10


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run, a card for it with the name `mine`, and nothing that ships yet."""
    monkeypatch.setattr(ship, "write_graphs", write_names)
    monkeypatch.setattr(ship, "ROOT", tmp_path)
    monkeypatch.setattr(fitting, "CARDS", tmp_path)
    monkeypatch.setattr(ship, "FOLDER", tmp_path / "weights")
    monkeypatch.setattr("grr_coca.model.checkpoint_files.FOLDER", tmp_path / "weights")
    words = {**WORDS, "other_splits": {"elsewhere": "pairs.tar"}, "fits": ["fit.py mine", "other.py"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(words))
    return finished_run(tmp_path, steps=2).folder


@pytest.mark.ci
def test_run_becomes_a_model_with_a_card(run, tmp_path, monkeypatch):
    (tmp_path / "fit.py").write_text("import sys, pathlib\npathlib.Path('fitted').write_text(sys.argv[1])")
    (tmp_path / "other.py").write_text("raise SystemExit(0)")
    monkeypatch.setattr(sys, "argv", ["ship.py", str(run), "mine"])
    ship.main()
    assert (tmp_path / "fitted").read_text() == "mine"
    card = bundled_models()["mine"]
    assert list(card.figures) == ["val", "elsewhere"]
    assert card.figures["val"]["perplexity"] == card.figures["elsewhere"]["perplexity"], "the same pairs"
    page = (tmp_path / "weights" / "mine" / "card.md").read_text()
    assert "| elsewhere |" in page
    assert "trains 2 steps with `the recipe`" in page
    shipped, trained = (from_pretrained(path).model.state_dict() for path in (tmp_path / "weights/mine", run))
    assert all(torch.equal(shipped[name], tensor.half().float()) for name, tensor in trained.items())

    folder = tmp_path / "weights" / "mine"
    (tmp_path / "fitted").unlink()
    (tmp_path / "other.py").write_text("raise SystemExit(2)")
    monkeypatch.setattr(sys, "argv", ["ship.py", "--fits", "mine"])
    with pytest.raises(UserError, match=r"failed: other\.py"):
        ship.main()
    assert (tmp_path / "fitted").exists()

    verify_folder(folder)
    before = json.loads((folder / "manifest.json").read_text())
    assert before["checkpoint"] == fingerprint(folder)
    assert before["files"].keys() >= {"image.onnx", "text.onnx", "step.onnx", "card.json", *FILES}

    monkeypatch.setattr(ship, "write_graphs", lambda checkpoint, path: (path / "step.onnx").write_text("new"))
    monkeypatch.setattr(sys, "argv", ["ship.py", "--graphs", "mine"])
    ship.main()
    verify_folder(folder)
    after = json.loads((folder / "manifest.json").read_text())
    assert after["checkpoint"] == before["checkpoint"] == fingerprint(folder), "an index of these weights stays valid"
    assert {n for n, entry in after["files"].items() if entry != before["files"][n]} == {"step.onnx"}
    assert after["files"].keys() == before["files"].keys()


@pytest.mark.parametrize(
    ("name", "known"),
    [("icons", "fef88ceaf9804f213222eb168d7235c4"), ("pictograms", "37eed30f590dede8f1278062dac51067")],
)
def test_indexes_of_bundled_models_stay_valid(name, known):
    """An index names the fingerprint of its model. Graphs are no part of it."""
    assert fingerprint(bundled_folder(name)) == known


@pytest.mark.parametrize("arguments", [["mine"], ["run", "mine", "--graphs"], ["--fits", "mine", "--graphs"]])
def test_requires_a_run_or_graphs(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["ship.py", *arguments])
    with pytest.raises(SystemExit):
        ship.main()


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "split", "files"),
    [
        ("pictograms", "test", "pictograms/test-*.tar"),
        ("pictograms", "health", "health/test-*.tar"),
        ("icons", "test_style", "pictograms/test_style-*.tar"),
        ("icons", "clipart", "clipart/test-*.tar"),
    ],
)
def test_card_facts_are_measured_again(name, split, files):
    """Of splits that come with the code. Rounding on another processor may turn one caption or rank in a hundred."""
    stated = bundled_models()[name].figures[split]
    found = ship.figures(from_pretrained(bundled_folder(name)), open_source(str(DATASETS / files)))
    for key in ("contrastive_loss", "coca_loss", "chance R@1"):
        assert found[key].value == pytest.approx(stated[key].value, rel=0.01), key
    shares = {key for key in stated if "R@" in key or key == "exact_captions"}
    assert {key for key in shares if abs(found[key].value - stated[key].value) > 0.01} == set()
