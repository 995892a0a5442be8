"""What a checkpoint of a run holds besides the model, in its folder `training`.

| file | holds |
|---|---|
| `progress.json` | the counters, see `Progress` |
| `optimizer.safetensors` | the optimizers' state, by parameter |
"""

import json
from pathlib import Path

from torch import Tensor

from grr_coca.checkpoint import Checkpoint, load_tensors, save_tensors, write_files
from grr_coca.structure import from_dict, to_dict
from grr_coca.train.progress import Progress
from grr_coca.train.state import load_optimizers, optimizer_tensors, whole_tensors
from grr_coca.train.step import Trainer
from grr_coca.train.store import CheckpointStore

FOLDER = "training"


def save(store: CheckpointStore, checkpoint: Checkpoint, trainer: Trainer, progress: Progress) -> None:
    """Write everything that is needed to use the model, and to go on training it. Every rank must call this.

    Raises:
        UserError: the disk is full or cannot be written to; on every rank.
    """
    raw, ranks = trainer.model.raw, trainer.model.ranks
    weights = whole_tensors(raw.state_dict().items(), ranks)
    state = whole_tensors(optimizer_tensors(raw, trainer.optimizers.optimizers), ranks)

    def fill(folder: Path) -> None:
        write_files(checkpoint, weights, folder)
        (folder / FOLDER).mkdir()
        save_tensors(state, folder / FOLDER / "optimizer.safetensors")
        (folder / FOLDER / "progress.json").write_text(json.dumps(to_dict(progress)), encoding="utf-8")

    ranks.on_first(lambda: store.save(checkpoint.step, fill, progress.best_step))


def restore(point: Path, trainer: Trainer) -> Progress:
    """Give optimizers the state that `save` wrote; the weights came with the model. Returns the counters."""
    folder = point / FOLDER
    state: dict[str, Tensor] = load_tensors(folder / "optimizer.safetensors")
    load_optimizers(trainer.model.raw, trainer.optimizers.optimizers, state)
    path = folder / "progress.json"
    return from_dict(Progress, json.loads(path.read_text(encoding="utf-8")), str(path))
