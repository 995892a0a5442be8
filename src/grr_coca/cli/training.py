"""Training from the command line: with a progress bar, or as a forecast only."""

from collections.abc import Callable
from pathlib import Path

from grr_coca.checkpoint import Checkpoint, from_pretrained
from grr_coca.cli.progress import bars
from grr_coca.errors import DiskError, UserError
from grr_coca.ranks import Ranks
from grr_coca.train.checkpoints import Origin, resume_point
from grr_coca.train.launch import launched
from grr_coca.train.loop import train
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import dry_run as expect


def run_training(
    recipe: Recipe,
    make_start: Callable[[Ranks], Checkpoint],
    out: Path,
    resume: bool,
    dry_run: bool,
    origin: Origin | None = None,
) -> None:
    """Train with a progress bar, or print what training would take.

    Args:
        recipe: the recipe of the run.
        make_start: makes the start model of a new run.
        out: the run folder.
        resume: continue the run in `out`, if there is one.
        dry_run: only print what training would take.
        origin: the checkpoint that the run begins from; None: it begins with new weights.
    """
    with launched() as ranks:
        if dry_run:
            told = expect(recipe, make_start(ranks), ranks)
            if ranks.is_first:
                print(told)
            return
        point = ranks.on_first(lambda: _point_to_go_on_from(out, recipe, resume, origin))
        start = make_start(ranks) if point is None else from_pretrained(point)
        if not ranks.is_first:
            train(recipe, start, out, ranks, lambda *_: None, point, origin)
            return
        with bars({start.preset: recipe.schedule.steps}) as shown:

            def on_step(done: int, metrics: dict[str, float]) -> None:
                losses = ", ".join(
                    f"{name} {metrics[name]:.3f}" for name in ("contrastive", "captioning") if name in metrics
                )
                shown.update(start.preset, done, losses)

            try:
                train(recipe, start, out, ranks, on_step, point, origin)
            except DiskError as error:
                raise UserError(f"{error}; make room there, and go on with --resume") from error
        print(f"checkpoint, log and recipe are in {out}")


def _point_to_go_on_from(out: Path, recipe: Recipe, resume: bool, origin: Origin | None) -> Path | None:
    if resume:
        return resume_point(out, recipe, origin)
    if (out / "checkpoints").exists():
        raise UserError(f"{out}: holds a run already; go on with it by --resume, or give another --out")
    return None
