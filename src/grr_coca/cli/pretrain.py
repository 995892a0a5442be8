"""`grr-coca pretrain`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.recipes import default_out, read_recipe
from grr_coca.errors import UserError
from grr_coca.presets import get_preset


def run(
    recipe: Annotated[Path, tyro.conf.Positional],
    preset: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Train a new model.

    Args:
        recipe: YAML file with everything that the run needs; see recipes/.
        preset: train this preset instead of the recipe's.
        data: train on these pairs instead of the recipe's, of any kind that `data check` reads; its val, test and mix
            are left out, and every 20th image is kept for validation.
        out: run folder for log and checkpoint; runs/RECIPE-PRESET if not given.
        seed: use this seed instead of the recipe's.
        resume: continue the run in --out, if there is one: after a stop, or whenever a scheduler starts it again.
        dry_run: run a few batches, then print the memory, steps and time to expect.
    """
    resolved = read_recipe(recipe, data, seed)
    model = resolved.model
    if model is None:
        raise UserError(f"{recipe}: has no key 'model'; it is a recipe for fine-tuning, see `grr-coca finetune`")
    if preset is not None:
        model = replace(model, preset=preset)
    get_preset(model.preset, model.size)
    resolved = replace(resolved, model=model)

    from grr_coca.cli.training import run_training  # late: torch comes with it
    from grr_coca.train.setup import new_checkpoint

    out = out or default_out(recipe, model.preset)
    run_training(resolved, partial(new_checkpoint, resolved), out, resume, dry_run)
