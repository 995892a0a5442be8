"""Small runs of the command line, ended and resumed, and what they leave."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from processes import Launch, cli, launch
from support import BATCH_SIZE, real_pairs, snapshot, tiny_recipe, write_shard

from grr_coca.train.recipe import CheckpointRecipe, EvaluationRecipe, ModelRecipe, Recipe, save_recipe

STEPS = 12
INTERVAL = 2


class Job:
    """One recipe, and the run folder in which it is run until it is finished."""

    def __init__(self, recipe: Recipe, folder: Path, ranks: int = 1) -> None:
        self.recipe = recipe
        self.folder = folder
        self.ranks = ranks
        self.out = folder / "run"
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, driver: Callable[[], None] | None = None, recipe: Recipe | None = None, ranks: int = 0) -> Launch:
        """Start or go on."""
        save_recipe(recipe or self.recipe, self.folder / "recipe.yaml")
        command = ("pretrain", self.folder / "recipe.yaml", "--out", self.out, "--resume")
        return launch(self.folder, partial(cli, driver=driver), *command, ranks=ranks or self.ranks)

    def finish(self) -> dict[str, bytes]:
        """Go on to the last step; what is there then."""
        self.start().finish()
        return self.state()

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint."""
        return sorted(int(path.name[5:]) for path in self.out.glob("checkpoints/step-*"))

    def state(self) -> dict[str, bytes]:
        """The files of the newest checkpoint, and the log."""
        newest = self.out / "checkpoints" / f"step-{self.steps()[-1]:09d}"
        return {**snapshot(newest), "log": (self.out / "metrics.jsonl").read_bytes()}


def small_recipe(folder: Path, **changes: object) -> Recipe:
    """Twelve steps over 40 pairs in two and a half epochs, in micro-batches, with a running average and a temperature
    that is refitted."""
    shard = write_shard(folder / "pairs.tar", real_pairs(40))
    recipe = tiny_recipe(
        shard,
        STEPS,
        model=ModelRecipe("grr_coca", "tiny", image_size=16, context_length=24),
        checkpoints=CheckpointRecipe(interval=INTERVAL),
        evaluation=EvaluationRecipe(interval=5, batch_size=BATCH_SIZE),
        ema=0.9,
        temperature="refitted",
    )
    return replace(recipe, data=replace(recipe.data, micro_batch_size=3), **changes)


def differing_files(first: dict[str, bytes], second: dict[str, bytes]) -> list[str]:
    """Names of the files of two states that are not the same to the byte."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
