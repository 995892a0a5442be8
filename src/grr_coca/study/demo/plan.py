"""The plan of a demo: a study of two arms with one seed, and what its report shows besides."""

from dataclasses import replace
from pathlib import Path

import torch

from grr_coca.errors import UserError
from grr_coca.model import build
from grr_coca.study.plan.folder import DemoPlan
from grr_coca.study.plan.plan import read_plan, stage_names
from grr_coca.study.plan.stages import check_recipes, stage_recipe
from grr_coca.train.recipe import Recipe
from grr_coca.train.run.numerics import decide


def load_demo(path: Path) -> DemoPlan:
    """Read the plan of a demo, and see that all it needs is there.

    Raises:
        UserError: no such file, not YAML, an unknown key, or something that the plan names does not exist.
    """
    plan = read_plan(path, DemoPlan)
    if len(plan.arms) != 2 or len(plan.seeds) != 1 or plan.tuning is not None:
        raise UserError(f"{path}: a demo has two arms, one seed and no tuning; `grr-coca study run` runs any plan")
    if not plan.finetune:
        raise UserError(f"{path}: finetune: a demo has one or more; `grr-coca study run` runs any plan")
    if plan.endpoints.split != "test":
        raise UserError(f"{path}: endpoints: split: a demo's is 'test', not '{plan.endpoints.split}'")
    if any(steps < 1 for steps in plan.schedules) or list(plan.schedules) != sorted(set(plan.schedules)):
        raise UserError(f"{path}: schedules: give numbers of steps, from the shortest to the longest")
    if not plan.queries:
        raise UserError(f"{path}: queries: give one or more")
    check_recipes(plan, path)
    return plan


def arm_names(plan: DemoPlan) -> tuple[str, str]:
    """The model, then its baseline."""
    (model,) = (arm.name for arm in plan.arms if arm.name != plan.baseline)
    return model, plan.baseline


def demo_recipes(plan: DemoPlan) -> dict[str, Recipe]:
    """The recipes by stage, those of the first arm, in the order in which they are run."""
    return {stage: stage_recipe(plan, plan.arms[0], stage, plan.seeds[0], {}) for stage in stage_names(plan)}


def with_precisions(plan: DemoPlan, device: torch.device) -> DemoPlan:
    """The plan with `auto` decided for both arms at once; each by itself might decide otherwise on a busy machine."""
    pretrain = next(iter(demo_recipes(plan).values()))
    assert pretrain.model is not None, "load_demo has seen to that"
    assert pretrain.tokenizer is not None, "and to that"
    numerics = decide(pretrain, build(pretrain.model.config(pretrain.tokenizer.vocab_size)), device)
    return replace(plan, precision=numerics.precision, muon_precision=numerics.muon_precision)
