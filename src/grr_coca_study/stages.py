"""Recipe of each stage of a study, and the digests that identify runs.

The recipe of a stage combines a recipe file with the plan, the arm, the seed and the point of a grid. The digests of
recipe and data are the same on every machine. Together, they cover everything but the seed that affects the result.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from grr_coca.common.dict_to_dataclass import flatten, from_dict, to_dict
from grr_coca.common.errors import UserError, suggest_name
from grr_coca.data.sources.open import find_files, require_exists, shards_of
from grr_coca.data.walk import walk_visible
from grr_coca.train.recipe import Recipe, load_recipe
from grr_coca_study.plan import Arm, Plan, Settings, points_of, stage_names


def recipe_path(plan: Plan, arm: Arm, stage: str) -> Path:
    """Return the recipe file for a stage of an arm."""
    path = dict(zip(stage_names(plan), map(Path, (plan.pretrain, *plan.finetune)), strict=True))[stage]
    return path if arm.recipes is None else Path(arm.recipes) / path.name


def stage_recipe(plan: Plan, arm: Arm, stage: str, seed: int, settings: Settings, is_trial: bool = False) -> Recipe:
    """Return the training recipe for a stage of an arm.

    Args:
        plan: Plan of the study.
        arm: Arm of the plan.
        stage: Name of a stage of the arm.
        seed: Seed of the run.
        settings: Point of the grid. Empty for the recipe's own values.
        is_trial: Whether pretraining uses the number of steps of a trial.

    Raises:
        UserError: If a recipe cannot be read, or the key or value of a setting is invalid.
    """
    path = recipe_path(plan, arm, stage)
    recipe = _recipe_of_file(path)
    if stage == stage_names(plan)[0]:
        assert recipe.model is not None, "the plan was checked"
        recipe = replace(recipe, model=replace(recipe.model, preset=arm.preset_name))
        recipe = _with_steps(recipe, _scale_steps(plan, arm, plan.steps))
        recipe = with_settings(recipe, arm.overrides, f"{path}: overrides of arm '{arm.name}'")
        if is_trial and plan.tuning is not None:
            recipe = _with_steps(recipe, _scale_steps(plan, arm, plan.tuning.steps))
    recipe = with_settings(recipe, settings, f"{path}: grid of arm '{arm.name}'")
    return _with_precisions(replace(recipe, seed=seed), plan)


def with_settings(recipe: Recipe, settings: Settings, where: str) -> Recipe:
    """Return the recipe with other values for some keys. Error messages begin with `where`.

    Raises:
        UserError: If a key or value is invalid.
    """
    tree = to_dict(recipe)
    for key, value in settings.items():
        branch: Any = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            branch = branch.get(parent)
            if not isinstance(branch, dict):
                raise UserError(f"{where}: the recipe has no key '{key}'; {suggest_name(key, flatten(recipe))}")
        branch[leaf] = value
    return from_dict(Recipe, tree, where)


def check_recipes(plan: Plan, path: Path) -> None:
    """Check all recipes and data of a plan before training, which takes hours.

    Raises:
        UserError: If a recipe or a split is missing, a value is invalid, or arms or points of a grid cannot be
            compared. The message names the file and the key.
    """
    pretraining = stage_names(plan)[0]
    for stage in stage_names(plan):
        for arm in plan.arms:
            _check_stage(plan, arm, recipe_path(plan, arm, stage), stage == pretraining)
        first = recipe_path(plan, plan.arms[0], stage)
        shared = _shared_values(stage_recipe(plan, plan.arms[0], stage, 0, {}))
        for arm in plan.arms:
            file = recipe_path(plan, arm, stage)
            where = f"{file}, with the overrides of arm '{arm.name}'" if arm.overrides else str(file)
            equal = f"must equal that of {first}, or the arms cannot be compared"
            _require_equal(shared, stage_recipe(plan, arm, stage, 0, {}), where, equal)
    tests = _recipe_of_file(recipe_path(plan, plan.arms[0], pretraining)).data.test
    if plan.showcase not in tests:
        raise UserError(f"{path}: showcase: no test split '{plan.showcase}'; {suggest_name(plan.showcase, tests)}")
    for arm, stage in product(plan.arms, stage_names(plan)):
        _check_points(plan, arm, stage, f"{path}: arms: {arm.name}")


def require_precisions(plan: Plan, path: Path) -> None:
    """Check that the precisions of every stage are fixed, so that rows from all machines are comparable.

    Raises:
        UserError: If the precision of a stage, or of its Muon optimizer, is `auto`.
    """
    for arm, stage in product(plan.arms, stage_names(plan)):
        recipe = stage_recipe(plan, arm, stage, 0, {})
        if recipe.precision == "auto":
            raise UserError(f"{path}: precision: 'auto' depends on the machine; set fp32 or bf16")
        if recipe.optimizer.name == "muon" and recipe.optimizer.muon_precision == "auto":
            raise UserError(f"{path}: muon_precision: 'auto' depends on the machine; set fp32 or bf16")


def _check_stage(plan: Plan, arm: Arm, file: Path, is_pretraining: bool) -> None:
    """Check that a recipe has all settings that a study needs, and that its data exist.

    Raises:
        UserError: If a setting or data are missing, or a setting is not allowed in this stage or contradicts the plan.
    """
    recipe = load_recipe(file)
    if (recipe.model is None or recipe.tokenizer is None) and is_pretraining:
        raise UserError(f"{file}: pretraining needs the keys 'model' and 'tokenizer'; add them")
    if (recipe.model is not None or recipe.tokenizer is not None) and not is_pretraining:
        raise UserError(f"{file}: a fine-tuning keeps the pretrained model; remove the keys 'model' and 'tokenizer'")
    if arm.recipes is not None and recipe.model is not None and recipe.model.preset != arm.preset_name:
        raise UserError(
            f"{file}: model: preset is '{recipe.model.preset}', but arm '{arm.name}' has '{arm.preset_name}'; "
            f"set the arm's preset: {recipe.model.preset}"
        )
    if plan.endpoints.split not in recipe.data.test:
        raise UserError(f"{file}: data: test: add a split named '{plan.endpoints.split}', which the endpoints need")
    if recipe.data.val is None:
        raise UserError(
            f"{file}: data: val is missing; add a validation split, on which a study refits temperatures "
            "and chooses settings"
        )
    for split in (recipe.data.train, recipe.data.val, *recipe.data.test.values()):
        require_exists(split)


def _check_points(plan: Plan, arm: Arm, stage: str, where: str) -> None:
    """Check that the points of a grid can be compared, and that the digests of their rows distinguish them.

    Raises:
        UserError: If points cannot be compared or distinguished.
    """
    shared = _shared_values(stage_recipe(plan, arm, stage, 0, {}))
    tried: dict[str, Settings] = {}
    for settings in points_of(plan, arm, stage):
        recipe = stage_recipe(plan, arm, stage, 0, settings)
        same = "must be the same at all points, or their losses cannot be compared"
        _require_equal(shared, recipe, f"{where}: grid", same)
        _check_parts(recipe, stage_recipe(plan, arm, stage_names(plan)[0], 0, {}), where)
        # Points can differ in writing but have the same result: `1e-3`, which YAML reads as a string, and 0.001; or
        # different values of `data.num_workers`.
        first = tried.setdefault(recipe_digest(recipe, None), settings)
        if first is not settings:
            raise UserError(f"{where}: grid: {settings} has the same result as {first} in {stage}; remove one of them")


def _check_parts(recipe: Recipe, pretraining: Recipe, where: str) -> None:
    """Check that the model has all parts that a recipe names. For fine-tuning, this is the model of its pretraining.

    Raises:
        UserError: If the recipe names a part that the model does not have.
    """
    if not recipe.optimizer.learning_rates and (recipe.model is None or recipe.model.image_positions == "random"):
        return
    from grr_coca.train.setup import check_parts  # lazy import: PyTorch

    model, tokenizer = recipe.model or pretraining.model, recipe.tokenizer or pretraining.tokenizer
    assert model is not None, "the plan was checked"
    assert tokenizer is not None, "the plan was checked"
    try:
        check_parts(recipe, model.config(tokenizer.vocab_size))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _require_equal(shared: Mapping[str, object], recipe: Recipe, where: str, message: str) -> None:
    for key, value in _shared_values(recipe).items():
        if value != shared[key]:
            raise UserError(f"{where}: {key}: {message}")


def _shared_values(recipe: Recipe) -> dict[str, object]:
    """Return the values, by key, that all recipes of a stage must share."""
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


def _with_steps(recipe: Recipe, steps: int | None) -> Recipe:
    """Return the recipe with another number of steps, and the same number of validations.

    If `steps` is None, return the recipe unchanged.
    """
    if steps is None:
        return recipe
    fraction = recipe.evaluation.interval / recipe.schedule.steps
    warmup_steps = min(recipe.schedule.warmup_steps, steps)
    return replace(
        recipe,
        schedule=replace(recipe.schedule, steps=steps, warmup_steps=warmup_steps),
        evaluation=replace(recipe.evaluation, interval=max(1, round(fraction * steps))),
    )


def _scale_steps(plan: Plan, arm: Arm, steps: int | None) -> int | None:
    """Scale a number of steps by the ratio of steps in the arm's pretraining recipe to steps in the plan's.

    The number is returned unchanged if it is None or the arm has no separate recipes.
    """
    if steps is None or arm.recipes is None:
        return steps
    own = _recipe_of_file(recipe_path(plan, arm, stage_names(plan)[0]))
    return max(1, round(steps * own.schedule.steps / _recipe_of_file(Path(plan.pretrain)).schedule.steps))


@cache
def _recipe_of_file(path: Path) -> Recipe:
    """Read a recipe only once, so that editing it during a study does not change the study."""
    return load_recipe(path)


def _with_precisions(recipe: Recipe, plan: Plan) -> Recipe:
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=plan.precision)
    if recipe.optimizer.muon_precision == "auto":
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, muon_precision=plan.muon_precision))
    return recipe


# --- Digests

_MAX_HASHED = 64 * 2**20
"""Maximum size, in bytes, of files that are hashed completely. For larger files, the size and both ends are hashed."""
_HASHED_END = 2**20
"""Number of bytes that are hashed at each end of a large file."""
_MAX_HASHED_FILES = 10_000
"""Maximum number of files in a folder whose contents are hashed. In larger folders, only names and sizes are hashed."""

_FREE_KEYS = ("train", "mix", "val", "test", "num_workers", "micro_batch_size")
"""Keys of `data` that the data digest covers, or that do not affect the result."""


def recipe_digest(recipe: Recipe, start: str | None) -> str:
    """Return the digest of all parts of a recipe that affect training or evaluation, except its seed and its data.

    Keys that have their default value are excluded, so that keys that are added later do not change digests.

    Args:
        recipe: Recipe without `auto`.
        start: Recipe digest of the run from which this run starts. None if it starts from new weights.
    """
    bare = replace(recipe, model=None, seed=0, checkpoints=type(recipe.checkpoints)())
    content = _non_default_values(replace(bare, health=type(recipe.health)(), parallelism="ddp"))
    data = content["data"]
    content["data"] = {key: data[key] for key in data if key not in _FREE_KEYS}
    if recipe.data.mix:
        content["data"]["mix"] = list(recipe.data.mix.values())  # the data digest covers the pairs
    if recipe.model is not None:
        assert recipe.tokenizer is not None, "the plan was checked"
        # The digest covers the config of a preset, but not its name.
        content["model"] = _non_default_values(recipe.model.config(recipe.tokenizer.vocab_size))
        content["pixels"] = [recipe.model.pixel_mean, recipe.model.pixel_std]
        if recipe.model.image_positions != "random":
            content["image_positions"] = recipe.model.image_positions
        if recipe.model.framing is not None:
            content["framing"] = _non_default_values(recipe.model.framing)
    return _digest({"recipe": content, "start": start})


def data_digest(recipe: Recipe) -> str:
    """Return the digest of the files of all splits, which does not depend on the location of their folder.

    Only the ends of large files are read, and no files in folders with more than `_MAX_HASHED_FILES` files.
    """
    data = recipe.data
    mixed = {f"mix {number}": path for number, path in enumerate(data.mix)}
    tests = {f"test {name}": path for name, path in data.test.items()}
    splits = {"train": data.train, "val": data.val, **mixed, **tests}
    return _digest({name: list(_describe_files(path)) for name, path in splits.items() if path is not None})


def folder_digest(recipe: str, data: Collection[str]) -> str:
    """Return a digest of a run's recipe digest and data digests, in any order, for the name of the run's folder."""
    return _digest({"recipe": recipe, "data": sorted(data)})


def _describe_files(path: str) -> Iterator[list[str | int]]:
    files, split = find_files(path)
    yield [split or ""]
    for file in files:
        parts = _data_files(file)
        for part in parts:
            yield [part.name, part.stat().st_size, _hash_file(part) if len(parts) <= _MAX_HASHED_FILES else ""]


def _data_files(path: Path) -> list[Path]:
    """Return the sorted data files of a path: the file itself, or the folder's shards, or else its visible files."""
    if not path.is_dir():
        return [path]
    files = (Path(folder, name) for folder, _, names in walk_visible(path) for name in names)
    return shards_of(path) or sorted(file for file in files if file.is_file())


def _hash_file(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _MAX_HASHED:
            return hashlib.file_digest(file, "sha256").hexdigest()
        start = file.read(_HASHED_END)
        file.seek(size - _HASHED_END)
        return hashlib.sha256(start + file.read()).hexdigest()


def _non_default_values(config: Any) -> dict[str, Any]:
    """Convert a dataclass to a plain tree, without the fields that have their default value."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.default is not dataclasses.MISSING and value == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        found[field.name] = _non_default_values(value) if dataclasses.is_dataclass(value) else value
    return found


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
