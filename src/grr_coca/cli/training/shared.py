"""What the two training verbs check and resolve. It needs no torch, so that what is wrong is said at once."""

from dataclasses import replace
from pathlib import Path

from grr_coca.data.sources.open import require_there
from grr_coca.extras import require_extra
from grr_coca.train.recipe import Recipe, load_recipe


def read_recipe(path: Path, data: str | None, seed: int | None) -> Recipe:
    """The recipe with what the command line says instead. Other pairs come with a validation split of their own.

    Raises:
        UserError: the recipe cannot be read, its pairs are not there, or a package for training is missing.
    """
    require_extra("train", "training")
    recipe = load_recipe(path)
    if data is not None:
        recipe = replace(recipe, data=replace(recipe.data, train=str(Path(data).absolute()), val=None, test={}))
    for split in (recipe.data.train, recipe.data.val):
        if split is not None:
            require_there(split)
    return recipe if seed is None else replace(recipe, seed=seed)


def default_out(recipe: Path, preset: str) -> Path:
    """The run folder when none is given."""
    return Path("runs") / f"{recipe.stem}-{preset}"
