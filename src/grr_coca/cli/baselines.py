"""Baselines for a run whose training pairs are known: metrics of the closed form and of the nearest image."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from grr_coca.common.errors import UserError
from grr_coca.infer.load import load, locate_checkpoint
from grr_coca.model.checkpoint_files import DEFAULT, is_adapted, start_of_run

if TYPE_CHECKING:
    from grr_coca.adapt.baselines import Baselines
    from grr_coca.data.sources.base import PairSource
    from grr_coca.evaluate.intervals import Measure


def baselines_of(folder: Path) -> "Baselines | None":
    """Fit the baselines of a model to its run's training pairs. Return None if the pairs are unknown or unsuitable.

    Args:
        folder: Checkpoint of the model.
    """
    run = folder.parent.parent
    if is_adapted(folder) or folder.parent.name != "checkpoints":
        return None
    from grr_coca.adapt.baselines import Baselines  # lazy imports, here and below: PyTorch
    from grr_coca.train.recipe import load_recipe
    from grr_coca.train.setup import training_sources

    try:
        recipe = load_recipe(run / "recipe.yaml")
        pairs, _ = training_sources(recipe)
        return Baselines(pairs, recipe.data.train, load(_start_of(run)))
    except UserError as error:
        print(f"no baselines: {error}", file=sys.stderr)
        return None


def _start_of(run: Path) -> Path:
    """Return the start model of a run, or the default model if the run started with new weights."""
    return start_of_run(run) or locate_checkpoint(DEFAULT)


def baseline_recalls(baselines: "Baselines", split: "PairSource", right: str) -> "dict[str, dict[str, Measure]]":
    """Return the recalls of each baseline on a split.

    Args:
        baselines: Fitted baselines.
        split: Pairs.
        right: See `grr_coca.evaluate.split.retrieve`.
    """
    from grr_coca.evaluate.checkpoint_metrics import retrieval_measures
    from grr_coca.evaluate.split import retrieve

    return {
        name: retrieval_measures(retrieve(gallery, "own" if right == "own" else "equal"))
        for name, gallery in baselines.galleries(split).items()
    }


def baseline_captions(baselines: "Baselines", split: "PairSource") -> "dict[str, dict[str, Measure]]":
    """Return the caption metrics of each baseline on a split."""
    return {name: captioned.scores().measures() for name, captioned in baselines.captions(split).items()}
