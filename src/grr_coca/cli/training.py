"""What the two training verbs share."""

from dataclasses import replace
from pathlib import Path

import torch

from grr_coca.checkpoint import Checkpoint
from grr_coca.cli.progress import bars
from grr_coca.errors import UserError
from grr_coca.train.dry_run import dry_run as expect
from grr_coca.train.recipe import Recipe
from grr_coca.train.run import train


def with_options(recipe: Recipe, data: str | None, seed: int | None) -> Recipe:
    """The recipe with what the command line says instead. Other pairs come with a validation split of their own."""
    if data is not None:
        recipe = replace(recipe, data=replace(recipe.data, train=str(Path(data).absolute()), val=None, test={}))
    return recipe if seed is None else replace(recipe, seed=seed)


def default_out(recipe: Path, preset: str) -> Path:
    """The run folder when none is given."""
    return Path("runs") / f"{recipe.stem}-{preset}"


def run_training(recipe: Recipe, start: Checkpoint, out: Path, dry_run: bool) -> None:
    """Train with a progress bar, or tell what training would take."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dry_run:
        print(expect(recipe, start, device))
        return
    if (out / "checkpoints").exists():
        raise UserError(f"{out}: holds a run already; give another --out, or remove it")
    with bars({start.preset: recipe.schedule.steps}) as shown:

        def on_step(done: int, metrics: dict[str, float]) -> None:
            losses = f"contrastive {metrics['contrastive']:.3f}, captioning {metrics['captioning']:.3f}"
            shown.update(start.preset, done, losses)

        train(recipe, start, out, device, on_step)
    print(f"checkpoint, log and recipe are in {out}")
