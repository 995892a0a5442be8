"""Checks that both training verbs share. This module does not import torch, so that errors are reported at once."""

from dataclasses import replace
from pathlib import Path

from grr_coca.data.sources.open import require_there
from grr_coca.extras import require_extra
from grr_coca.train.recipe import Recipe, absolute_data, load_recipe


def read_recipe(path: Path, data: str | None, seed: int | None) -> Recipe:
    """Read a recipe, and replace what the command line gives. With other pairs, some of them are kept for validation.

    Raises:
        UserError: the recipe cannot be read, its pairs do not exist, or a package for training is missing.
    """
    require_extra("train", "training")
    recipe = load_recipe(path)
    if data is not None:
        train = absolute_data(Path.cwd(), data)
        recipe = replace(recipe, data=replace(recipe.data, train=train, mix={}, val=None, test={}))
    for split in (recipe.data.train, *recipe.data.mix, recipe.data.val):
        if split is not None:
            require_there(split)
    return recipe if seed is None else replace(recipe, seed=seed)


def default_out(recipe: Path, preset: str) -> Path:
    """The run folder if none is given."""
    return Path("runs") / f"{recipe.stem}-{preset}"
