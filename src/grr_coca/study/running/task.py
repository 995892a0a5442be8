"""One stage of a study for one arm and seed: all that a process must know to run it."""

from dataclasses import dataclass
from pathlib import Path

from grr_coca.study.ledger import Kind
from grr_coca.study.plan.plan import Variant
from grr_coca.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """`recipe` with every setting, `variant`: what is changed in the model, `folder` of the run, `start`: the folder of
    the run that this one goes on from.

    `start_data_digest`: of the data of that run.
    `showcase`: the test split that examples are taken from, `num_captions` of them; `without`: see `Plan`;
    `scores_captions`: whether the test splits are captioned.
    """

    kind: Kind
    arm: str
    seed: int
    stage: str
    recipe: Recipe
    variant: Variant | None
    settings: dict[str, object]
    recipe_digest: str
    data_digest: str
    start_data_digest: str | None
    folder: Path
    start: Path | None
    showcase: str
    num_captions: int
    without: tuple[str, ...]
    scores_captions: bool

    @property
    def name(self) -> str:
        """As people are told of it."""
        tried = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.settings.items())
        return f"{self.arm}, {self.stage}, " + (f"trial of {tried}" if self.kind == "trial" else f"seed {self.seed}")


FINISHED = "finished"
"""A file that says that a run's folder holds its last checkpoint, and that it was measured."""


def is_finished(folder: Path | None) -> bool:
    """Whether the run of a folder has ended."""
    return folder is not None and (folder / FINISHED).exists()
