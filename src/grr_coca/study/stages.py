"""The recipe of each stage of a study, with all that plan, arm, seed and tuning say.

Digests of what a run depends on: equal for equal runs, wherever they are done, and different for any others.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from grr_coca.data.images import walk_visible
from grr_coca.data.sources.open import find_files, require_there, shards_of
from grr_coca.errors import UserError, nearest
from grr_coca.structure import from_dict, to_dict
from grr_coca.study.plan import Arm, Plan, stage_names
from grr_coca.train.recipe import Recipe, load_recipe

HASHED_WHOLE = 64 * 2**20
HASHED_ENDS = 2**20
"""Bytes: a file up to the first size is read whole; of a larger one its size and so much from either end."""
MANY = 10_000
"""Files: those of larger folders count by their names and sizes alone."""

FREE_KEYS = ("train", "mix", "val", "test", "num_workers", "micro_batch_size")
"""Keys of `data` that are the data digest's matter, or change nothing that is learned."""


def recipe_digest(recipe: Recipe, start: str | None, variant: str | None = None) -> str:
    """Of everything in a recipe that changes what is learned and measured, its seed and its data apart.

    Keys that have their default value do not count, so that a key which is added later changes no digest.

    Args:
        recipe: without `auto`.
        start: the digest of the run that this one goes on from; None: it begins with new weights.
        variant: what is changed in the model after it was built.
    """
    bare = dataclasses.replace(recipe, model=None, seed=0, checkpoints=type(recipe.checkpoints)())
    content = _changed(dataclasses.replace(bare, health=type(recipe.health)(), parallelism="ddp"))
    data = content["data"]
    content["data"] = {key: data[key] for key in data if key not in FREE_KEYS}
    if recipe.data.mix:
        content["data"]["mix"] = list(recipe.data.mix.values())  # which pairs these are is the data's matter
    if recipe.model is not None:
        assert recipe.tokenizer is not None, "the plan was checked"
        # What a preset means is part of the run, its name is not.
        content["model"] = _changed(recipe.model.config(recipe.tokenizer.vocab_size))
        content["pixels"] = [recipe.model.pixel_mean, recipe.model.pixel_std]
    if variant is not None:
        content["variant"] = variant
    return _digest({"recipe": content, "start": start})


def data_digest(recipe: Recipe) -> str:
    """Of the files of all splits. Where their folder lies does not count."""
    data = recipe.data
    mixed = {f"mix {number}": path for number, path in enumerate(data.mix)}
    tests = {f"test {name}": path for name, path in data.test.items()}
    splits = {"train": data.train, "val": data.val, **mixed, **tests}
    return _digest({name: list(_described(path)) for name, path in splits.items() if path is not None})


def folder_digest(recipe: str, data: Collection[str]) -> str:
    """Of a run's recipe and of all data that it depends on, by their digests."""
    return _digest({"recipe": recipe, "data": sorted(data)})


def _described(path: str) -> Iterator[list[str | int]]:
    files, split = find_files(path)
    yield [split or ""]
    for file in files:
        parts = _parts(file)
        for part in parts:
            yield [part.name, part.stat().st_size, _content(part) if len(parts) <= MANY else ""]


def _parts(path: Path) -> list[Path]:
    """The files of a folder that are read as data, in order."""
    if not path.is_dir():
        return [path]
    files = (Path(folder, name) for folder, _, names in walk_visible(path) for name in names)
    return shards_of(path) or sorted(file for file in files if file.is_file())


def _content(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= HASHED_WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        start = file.read(HASHED_ENDS)
        file.seek(size - HASHED_ENDS)
        return hashlib.sha256(start + file.read()).hexdigest()


def _changed(config: Any) -> dict[str, Any]:
    """The plain tree of a dataclass without what is as its class has it."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.default is not dataclasses.MISSING and value == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        found[field.name] = _changed(value) if dataclasses.is_dataclass(value) else value
    return found


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


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
