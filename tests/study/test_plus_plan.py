"""The study of our own recipe: what its question says must hold of its recipes."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from grr_coca.data.sources.open import open_source
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.presets import get_preset
from grr_coca.study.plan import Arm, Plan, arm_named, read_plan, stage_names
from grr_coca.study.running.stage import caption_lengths, step_flops
from grr_coca.study.stages import check_recipes, require_precisions, stage_recipe
from grr_coca.train.setup import new_checkpoint
from support import ALONE

PLUS = Path(__file__).parents[2] / "studies" / "plus"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(PLUS / "plan.yaml", Plan)


@pytest.fixture(scope="module")
def start(plan) -> Checkpoint:
    """A model of the study; what counts is its tokenizer, which all arms share."""
    return new_checkpoint(recipe_of(plan, plan.arms[0], "pictograms"), ALONE)


def recipe_of(plan: Plan, arm: Arm, stage: str):
    return stage_recipe(plan, arm, stage, 0, {})


def flops(plan: Plan, arm: Arm, stage: str, lengths: Tensor) -> int:
    pretraining, recipe = recipe_of(plan, arm, stage_names(plan)[0]), recipe_of(plan, arm, stage)
    config = pretraining.model.config(pretraining.tokenizer.vocab_size)
    return recipe.schedule.steps * step_flops(recipe, config, lengths)


def test_the_plan_can_be_run(plan):
    check_recipes(plan, PLUS / "plan.yaml")
    require_precisions(plan, PLUS / "plan.yaml")
    assert len(plan.seeds) == 8


@pytest.mark.ci
def test_our_recipe_costs_no_more_than_the_standard_one_and_the_control_as_much_as_ours(plan, start):
    for stage in stage_names(plan):
        lengths = caption_lengths(start, open_source(recipe_of(plan, plan.arms[0], stage).data.val))
        ours, control, standard = (flops(plan, arm, stage, lengths) for arm in plan.arms)
        assert control == pytest.approx(ours, rel=0.01), stage
        assert 1 <= standard / ours < 1.1, stage


def test_the_standard_recipe_has_nothing_of_ours(plan):
    standard = arm_named(plan, plan.baseline)
    for stage in stage_names(plan):
        recipe = recipe_of(plan, standard, stage)
        assert recipe.optimizer.name == "adamw"
        assert recipe.temperature == "learned"
        assert recipe.data.patch_dropout == 0
        assert {key for key, value in vars(recipe.data.augmentation).items() if value} <= {"crop", "scale"}
        assert recipe.data.augmentation.scale == (1.0, 1.0)
    assert standard.preset_name == "baseline_coca"


def test_the_control_differs_from_ours_in_the_model_alone(plan):
    ours, control = (arm_named(plan, name) for name in ("grr_coca_plus", "baseline_plus"))
    for stage in stage_names(plan)[1:]:
        assert recipe_of(plan, ours, stage) == recipe_of(plan, control, stage)
    pretraining = recipe_of(plan, ours, "pictograms")
    model = replace(pretraining.model, preset="baseline_coca", captions_from="patches")
    assert recipe_of(plan, control, "pictograms") == replace(pretraining, model=model)
    config = recipe_of(plan, control, "pictograms").model.config(4096)
    transformer = get_preset("baseline_coca", "tiny").image_encoder.transformer
    assert config.image_encoder.transformer == transformer
