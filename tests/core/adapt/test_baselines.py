"""Closed form and nearest image beside a run whose training pairs are known."""

import json

import pytest
from support import snapshot

from grr_coca.common.ranks import join_ranks
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.loop import train
from grr_coca.train.recipe import DataRecipe, EvaluationRecipe, OptimizerRecipe, Recipe, ScheduleRecipe
from grr_coca.train.run_checkpoints import origin_of


@pytest.fixture(scope="module")
def tuned(place, tmp_path_factory):
    """`icons`, fine-tuned on the pairs for one step."""
    out = tmp_path_factory.mktemp("run") / "mine"
    recipe = Recipe(
        data=DataRecipe(train=str(place / "pairs.tar"), val=str(place / "unseen.tar"), batch_size=32),
        optimizer=OptimizerRecipe("muon", lr=0.001),
        schedule=ScheduleRecipe(steps=1, warmup_steps=0),
        evaluation=EvaluationRecipe(interval=10, batch_size=4),
        precision="fp32",
    )
    icons = locate_checkpoint("icons")
    with join_ranks() as ranks:
        train(recipe, from_pretrained(icons), out, ranks, lambda *_: None, origin=origin_of(icons))
    return out


def recall(found, k=10):
    return found[f"text_to_image/R@{k}"]["value"]


@pytest.mark.ci
def test_closed_form_is_close_to_adapt(grr_coca, place, tuned):
    data = ["--data", place / "unseen.tar", "--json"]
    result = grr_coca("evaluate", tuned, "--task", "retrieval", *data)
    assert result.code == 0, result.err
    found = json.loads(result.out)[str(place / "unseen.tar")]
    adapted = json.loads(grr_coca("evaluate", place / "mine", *data).out)[str(place / "unseen.tar")]["metrics"]
    closed, nearest = found["baselines"]["closed form"], found["baselines"]["nearest image"]
    for name, found_here in closed.items():
        assert found_here == pytest.approx(adapted[name])
    assert recall(found["metrics"]) < recall(nearest) < recall(closed)


@pytest.mark.ci
def test_text_output_shows_baselines(grr_coca, place, tuned):
    arguments = ["--data", place / "unseen.tar", "--batch-size", 8]
    result = grr_coca("evaluate", tuned, *arguments)
    assert "closed form      text→image R@1" in result.out
    assert "closed form" not in grr_coca("evaluate", tuned, *arguments, "--no-baselines").out
    result = grr_coca("compare", tuned, "icons", *arguments)
    assert f"nearest image by the training pairs of {tuned}, " in result.out
    result = grr_coca("evaluate", tuned, "--data", place / "unseen.tar", "--task", "captioning", "--json")
    found = json.loads(result.out)[str(place / "unseen.tar")]
    assert found["baselines"]["nearest image"]["CIDEr"]["value"] > found["metrics"]["CIDEr"]["value"]


@pytest.mark.ci
def test_unknown_training_pairs_give_no_baselines(grr_coca, place, tuned, tmp_path):
    for name, content in snapshot(tuned).items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("pairs.tar", "gone.tar"), encoding="utf-8")
    arguments = ["--data", place / "unseen.tar", "--batch-size", 8, "--json"]
    for model in ("icons", tmp_path / "run"):
        result = grr_coca("evaluate", model, *arguments)
        assert json.loads(result.out)[str(place / "unseen.tar")]["baselines"] == {}
        assert ("no baselines: " in result.err) == (model != "icons")
