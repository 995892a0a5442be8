"""The recipe of each stage of a study, with all that plan, arm, seed and tuning say."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from grr_coca.data.sources.open import require_there
from grr_coca.errors import UserError, nearest
from grr_coca.structure import from_dict, to_dict
from grr_coca.study.plan.plan import Arm, Plan, stage_names
from grr_coca.train.recipe import Recipe, load_recipe

Settings = Mapping[str, object]
"""Values of keys of a recipe, by their path, such as `optimizer.lr`."""


def recipe_path(plan: Plan, arm: Arm, stage: str) -> Path:
    """The file of the recipe by which an arm is trained in a stage."""
    path = dict(zip(stage_names(plan), map(Path, (plan.pretrain, *plan.finetune)), strict=True))[stage]
    return path if arm.recipes is None else Path(arm.recipes) / path.name


def stage_recipe(plan: Plan, arm: Arm, stage: str, seed: int, settings: Settings, is_trial: bool = False) -> Recipe:
    """What an arm is trained with in a stage.

    Args:
        plan: the study.
        arm: one of its arms.
        stage: one of its stages.
        seed: of the run.
        settings: what tuning tries or has chosen.
        is_trial: pretraining has as many steps as a trial.

    Raises:
        UserError: a recipe cannot be read, or has no such key or value.
    """
    path = recipe_path(plan, arm, stage)
    recipe = _recipe_of_file(path)
    if stage == stage_names(plan)[0]:
        recipe = with_steps(_of_preset(recipe, arm, path), _share_of_own(plan, arm, plan.steps))
        recipe = with_settings(recipe, arm.overrides, f"{path}: overrides of arm '{arm.name}'")
        if is_trial and plan.tuning is not None:
            recipe = with_steps(recipe, _share_of_own(plan, arm, plan.tuning.steps))
    recipe = with_settings(recipe, settings, f"{path}: tuning")
    return _with_precisions(replace(recipe, seed=seed), plan)


def with_settings(recipe: Recipe, settings: Settings, where: str) -> Recipe:
    """The recipe with other values for some keys.

    Raises:
        UserError: a recipe has no such key, or the key no such value.
    """
    tree = to_dict(recipe)
    for key, value in settings.items():
        branch: Any = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            branch = branch.get(parent)
            if not isinstance(branch, dict):
                raise UserError(f"{where}: the recipe has no key '{key}'; {nearest(key, _keys(to_dict(recipe)))}")
        branch[leaf] = value
    return from_dict(Recipe, tree, where)


def settings_of(recipe: Recipe, keys: Mapping[str, object]) -> dict[str, object]:
    """What a recipe has for some keys."""
    found = dict(_leaves(to_dict(recipe)))
    return {key: found[key] for key in keys}


def with_steps(recipe: Recipe, steps: int | None) -> Recipe:
    """A shorter or longer run of the same kind, validated as often; None leaves the recipe as it is."""
    if steps is None:
        return recipe
    share = recipe.evaluation.interval / recipe.schedule.steps
    warmup_steps = min(recipe.schedule.warmup_steps, steps)
    return replace(
        recipe,
        schedule=replace(recipe.schedule, steps=steps, warmup_steps=warmup_steps),
        evaluation=replace(recipe.evaluation, interval=max(1, round(share * steps))),
    )


def check_recipes(plan: Plan, path: Path) -> None:
    """Find out before hours of training what would fail after them.

    Raises:
        UserError: a recipe, a split or a value is not there; names the file and the key.
    """
    pretraining = stage_names(plan)[0]
    for stage in stage_names(plan):
        recipes = {}
        for arm in plan.arms:
            file = recipe_path(plan, arm, stage)
            _check_stage(plan, arm, load_recipe(file), stage == pretraining, file)
            where = f"{file}, with the overrides of arm '{arm.name}'" if arm.overrides else str(file)
            recipes[where] = stage_recipe(plan, arm, stage, 0, {})
        _require_comparable(recipes)
    tests = _recipe_of_file(recipe_path(plan, plan.arms[0], pretraining)).data.test
    if plan.showcase not in tests:
        raise UserError(f"{path}: showcase: no test split '{plan.showcase}'; {nearest(plan.showcase, tests)}")
    for arm in plan.arms:
        for stage in stage_names(plan):
            for settings in grid_of(plan, stage):
                recipe = stage_recipe(plan, arm, stage, 0, settings)
                if recipe.model is not None and recipe.tokenizer is not None:
                    recipe.model.config(recipe.tokenizer.vocab_size)


def require_precisions(plan: Plan, path: Path) -> None:
    """See that no stage leaves its precision to the machine: rows of all machines are to count together.

    Raises:
        UserError: one does.
    """
    for arm, stage in product(plan.arms, stage_names(plan)):
        recipe = stage_recipe(plan, arm, stage, 0, {})
        if recipe.precision == "auto":
            raise UserError(f"{path}: precision: 'auto' may be another one on each machine; give fp32 or bf16")
        if recipe.optimizer.name == "muon" and recipe.optimizer.muon_precision == "auto":
            raise UserError(f"{path}: muon_precision: 'auto' may be another one on each machine; give fp32 or bf16")


def grid_of(plan: Plan, stage: str) -> list[dict[str, object]]:
    """The settings that are tried for a stage; a single one without any key if there is nothing to choose."""
    tuning = plan.tuning
    if tuning is None:
        return [{}]
    grid: list[dict[str, object]] = [{}]
    for key, values in (tuning.pretrain if stage == stage_names(plan)[0] else tuning.finetune).items():
        grid = [{**settings, key: value} for settings in grid for value in values]
    return grid


def _check_stage(plan: Plan, arm: Arm, recipe: Recipe, is_pretraining: bool, file: Path) -> None:
    """A recipe has what a study needs of it, and its data are there."""
    if (recipe.model is None or recipe.tokenizer is None) and is_pretraining:
        raise UserError(f"{file}: pretraining needs the keys 'model' and 'tokenizer'")
    if (recipe.model is not None or recipe.tokenizer is not None) and not is_pretraining:
        raise UserError(f"{file}: a fine-tuning keeps the model; remove the keys 'model' and 'tokenizer'")
    if arm.recipes is not None and recipe.model is not None and recipe.model.preset != arm.preset_name:
        raise UserError(
            f"{file}: model: preset is '{recipe.model.preset}', and arm '{arm.name}' is '{arm.preset_name}'; "
            f"give the arm preset: {recipe.model.preset}"
        )
    if arm.variant is not None and recipe.evaluation.num_captions:
        raise UserError(
            f"{file}: evaluation: num_captions: arm '{arm.name}' is a variant, whose captions at validation "
            "would be those of another model; give 0"
        )
    if plan.endpoints.split not in recipe.data.test:
        raise UserError(f"{file}: data: test: a split named '{plan.endpoints.split}' is needed")
    if recipe.data.val is None:
        raise UserError(f"{file}: data: val is needed: temperatures are refitted and settings chosen there")
    for split in (recipe.data.train, recipe.data.val, *recipe.data.test.values()):
        require_there(split)


def _require_comparable(recipes: Mapping[str, Recipe]) -> None:
    """The numbers that are compared mean the same, whatever else arms differ in. Recipes come by where they stand."""
    (first, wanted), *others = ((where, _common(recipe)) for where, recipe in recipes.items())
    for where, found in others:
        for key, value in wanted.items():
            if found[key] != value:
                raise UserError(f"{where}: {key}: must be as in {first}, or the arms cannot be compared")


def _common(recipe: Recipe) -> dict[str, object]:
    """What all recipes of a stage must have in common, by key."""
    data = recipe.data
    return {
        "tokenizer": recipe.tokenizer,
        "data.train": data.train,
        "data.mix": list(data.mix),
        "data.val": data.val,
        "data.test": data.test,
        "losses.contrastive_weight": recipe.losses.contrastive_weight,
        "losses.captioning_weight": recipe.losses.captioning_weight,
        "evaluation.batch_size": recipe.evaluation.batch_size,
    }


def _share_of_own(plan: Plan, arm: Arm, steps: int | None) -> int | None:
    """So many steps of the plan's pretraining, as the same share of that of an arm with recipes of its own."""
    if steps is None or arm.recipes is None:
        return steps
    own = _recipe_of_file(recipe_path(plan, arm, stage_names(plan)[0]))
    return max(1, round(steps * own.schedule.steps / _recipe_of_file(Path(plan.pretrain)).schedule.steps))


@lru_cache(maxsize=32)
def _recipe_of_file(path: Path) -> Recipe:
    """Read once: a recipe that is edited while a study runs does not change the study."""
    return load_recipe(path)


def _of_preset(recipe: Recipe, arm: Arm, path: Path) -> Recipe:
    if recipe.model is None:
        raise UserError(f"{path}: pretraining needs the keys 'model' and 'tokenizer'")
    return replace(recipe, model=replace(recipe.model, preset=arm.preset_name))


def _with_precisions(recipe: Recipe, plan: Plan) -> Recipe:
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=plan.precision)
    if recipe.optimizer.muon_precision == "auto":
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, muon_precision=plan.muon_precision))
    return recipe


def _keys(tree: dict[str, Any]) -> list[str]:
    return [key for key, _ in _leaves(tree)]


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found
