"""`grr-coca finetune`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.checkpoint import from_pretrained
from grr_coca.cli.training.shared import default_out, run_training, with_options
from grr_coca.errors import UserError
from grr_coca.train.recipe import load_recipe
from grr_coca.train.run.setup import check_start


def run(
    recipe: Annotated[Path, tyro.conf.Positional],
    checkpoint: Path | None = None,
    data: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Go on from a checkpoint.

    Args:
        recipe: YAML file with all that the run needs but the model; see recipes/.
        checkpoint: checkpoint or run folder to start from.
        data: train on these pairs (.tar shards or a folder) in place of the recipe's.
        out: run folder for log and checkpoint; runs/RECIPE-PRESET if not given.
        seed: use this seed in place of the recipe's.
        resume: go on with the run in --out, if there is one: after a stop, or whenever a scheduler starts it again.
        dry_run: do one batch, then tell memory, steps and time to expect.
    """
    resolved = with_options(load_recipe(recipe), data, seed)
    if checkpoint is None:
        # A silent fresh start is how models end up with one caption for every image.
        raise UserError("fine-tuning starts from a checkpoint: give --checkpoint FOLDER, or use `grr-coca pretrain`")
    start = from_pretrained(checkpoint)
    check_start(start, resolved)
    run_training(resolved, lambda _: start, out or default_out(recipe, start.preset), resume, dry_run)
