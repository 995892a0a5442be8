"""Finds the checkpoint from which a stopped run continues."""

from pathlib import Path

from grr_coca.checkpoint_files import checkpoints_by_step
from grr_coca.errors import UserError
from grr_coca.structure import differences
from grr_coca.train.recipe import Recipe, load_recipe
from grr_coca.train.survival.origin import Origin, require_same_origin
from grr_coca.train.survival.snapshot import read_numerics
from grr_coca.train.survival.store import CheckpointStore

FREE_KEYS = (
    "data.num_workers",
    "data.micro_batch_size",
    "data.test",
    "parallelism",
    "checkpoints.interval",
    "checkpoints.minutes",
    "checkpoints.keep_last",
    "health",
)
"""Keys of a recipe that may change when a run continues, because they do not change what the model learns."""


class NoneReadableError(UserError):
    """A run has checkpoints, and none of them can be read."""


def resume_point(out: Path, recipe: Recipe, origin: Origin | None = None) -> Path | None:
    """The newest undamaged checkpoint of a run folder; None if there is none yet.

    Args:
        out: the run folder.
        recipe: the recipe of the run.
        origin: the checkpoint that the run is to begin from; None: it is not looked at.

    Raises:
        NoneReadableError: there are checkpoints, and all of them are damaged or cannot be read.
        UserError: the folder holds the run of another recipe, and the message names the first key that differs; or
            that of another `origin`.
    """
    folder = out / "checkpoints"
    point = CheckpointStore(folder, keep_last=1).newest()
    if point is None:
        # A run that began anew would remove them at its first save, although the disk may only be away for now.
        if damaged := checkpoints_by_step(folder):
            raise NoneReadableError(
                f"{folder}: none of its checkpoints can be read ({len(damaged)} found, see the warnings); "
                "if the disk was away, give the same command again; to start this run anew, delete that folder"
            )
        return None
    path = out / "recipe.yaml"
    for key, wanted, found in differences(with_its_numerics(recipe, point), load_recipe(path)):
        if not key.startswith(FREE_KEYS):
            raise UserError(
                f"{path}: the run there has {key} {found}, not {wanted}; to go on with it, give it the same recipe, "
                "to start another, give another --out"
            )
    if origin is not None:
        require_same_origin(origin, out)
    return point


def with_its_numerics(recipe: Recipe, point: Path) -> Recipe:
    """The recipe, with the precisions that were decided for each `auto` when the run of this checkpoint began."""
    return read_numerics(point).for_autos_of(recipe)
