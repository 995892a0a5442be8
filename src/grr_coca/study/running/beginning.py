"""What a run begins with: hashes by which two runs can be shown to differ in nothing but what they compare."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from grr_coca.checkpoint import Checkpoint
from grr_coca.checkpoint_files import read_json
from grr_coca.data.order import Visits
from grr_coca.errors import DiskError
from grr_coca.files import write_whole
from grr_coca.structure import from_dict, to_dict
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import training_sources, training_visits

BEGINNING_FILE = "beginning.json"
HASH_DIGITS = 12
MAX_HASHED_VISITS = 1_000_000
"""Of a longer run, the order of its first visits is hashed, which takes seconds."""


@dataclass(frozen=True)
class Beginning:
    """Hashes of the weights before the first step and of the order of the data, as in `LedgerRow`."""

    initial_weights: dict[str, str] = field(default_factory=dict)
    data_order: str | None = None


def note_beginning(recipe: Recipe, start: Checkpoint, folder: Path) -> None:
    """Hash what a run is about to begin with, and keep it in the run's folder: a run that is resumed has other weights.

    Args:
        recipe: of the run.
        start: the model before the first step. A fine-tuning starts from trained weights, which no two arms share, so
            they are not hashed.
        folder: of the run.

    Raises:
        DiskError: the folder cannot be written to.
    """
    pairs, _ = training_sources(recipe)
    num_visits = recipe.schedule.steps * recipe.data.batch_size
    found = Beginning(
        initial_weights={} if recipe.model is None else weight_hashes(start.model),
        data_order=order_hash(training_visits(recipe, pairs), num_visits),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / BEGINNING_FILE, json.dumps(to_dict(found)).encode())
    except OSError as error:
        raise DiskError(f"{folder}: the run folder cannot be written to ({error.strerror})") from error


def noted_beginning(folder: Path) -> Beginning:
    """What was noted when the run of a folder began; without hashes if an earlier version began it."""
    path = folder / BEGINNING_FILE
    return from_dict(Beginning, read_json(path), str(path)) if path.exists() else Beginning()


def weight_hashes(model: nn.Module) -> dict[str, str]:
    """A hash of each parameter, by its name and shape."""
    return {
        f"{name} {list(parameter.shape)}": _hash(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        for name, parameter in model.named_parameters()
    }


def order_hash(visits: Visits, num_visits: int) -> str:
    """A hash of the epoch and sample of the first visits, at most `MAX_HASHED_VISITS`, and of their number."""
    hashed = np.array([visits.at(position) for position in range(min(num_visits, MAX_HASHED_VISITS))], dtype="<i8")
    return _hash(np.append(hashed.ravel(), np.int64(num_visits)).astype("<i8"))


def _hash(content: np.ndarray) -> str:
    return hashlib.sha256(content.tobytes()).hexdigest()[:HASH_DIGITS]
