"""`grr-coca finetune`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.recipes import default_out, read_recipe
from grr_coca.errors import UserError
from grr_coca.inference.locate import locate_checkpoint


def run(
    recipe: Annotated[Path, tyro.conf.Positional],
    checkpoint: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Train a checkpoint further, on other pairs.

    Args:
        recipe: YAML file with everything that the run needs except the model; see recipes/.
        checkpoint: folder to start from, or name of a model (see `grr-coca models`).
        data: train on these pairs instead of the recipe's, of any kind that `data check` reads; its val, test and mix
            are left out, and every 20th image is kept for validation.
        out: run folder for log and checkpoint; runs/RECIPE-PRESET if not given.
        seed: use this seed instead of the recipe's.
        resume: continue the run in --out, if there is one: after a stop, or whenever a scheduler starts it again.
        dry_run: run a few batches, then print the memory, steps and time to expect.
    """
    resolved = read_recipe(recipe, data, seed)
    if checkpoint is None:
        # Fine-tuning must not silently start from random weights: such models give every image the same caption.
        raise UserError("fine-tuning starts from a checkpoint: give --checkpoint FOLDER, or use `grr-coca pretrain`")
    folder = locate_checkpoint(checkpoint)

    from grr_coca.checkpoint import from_pretrained  # late: torch comes with it
    from grr_coca.cli.training import run_training
    from grr_coca.train.checkpoints import origin_of
    from grr_coca.train.setup import check_start

    start = from_pretrained(folder)
    check_start(start, resolved)
    out = out or default_out(recipe, start.preset)
    run_training(resolved, lambda _: start, out, resume, dry_run, origin_of(folder))
