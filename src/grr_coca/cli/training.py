"""What the two training verbs share."""

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from grr_coca.checkpoint import Checkpoint
from grr_coca.errors import UserError
from grr_coca.train.dry_run import dry_run as expect
from grr_coca.train.recipe import Recipe
from grr_coca.train.run import train


def with_options(recipe: Recipe, data: str | None, seed: int | None) -> Recipe:
    """The recipe with what the command line says instead. Paths there are relative to where one stands."""
    if data is not None:
        recipe = replace(recipe, data=replace(recipe.data, train=str(Path(data).absolute())))
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
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(start.preset, total=recipe.schedule.steps)

        def on_step(done: int, metrics: dict[str, float]) -> None:
            description = f"contrastive {metrics['contrastive']:.3f}  captioning {metrics['captioning']:.3f}"
            progress.update(task, completed=done, description=description)

        train(recipe, start, out, device, on_step)
    print(f"checkpoint, log and recipe are in {out}")
