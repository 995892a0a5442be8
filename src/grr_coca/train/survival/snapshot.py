"""The folder `training` of a checkpoint: the state of a run, without its model.

| file | holds |
|---|---|
| `progress.json` | the counters, see `Progress` |
| `numerics.json` | the precisions that were decided when the run began, see `Numerics` |
| `data.json` | what its pairs were, see `DataState`; older checkpoints have none |
| `optimizer.safetensors` | the optimizers' state, by parameter |
| `weights.safetensors` | the weights, if `model.safetensors` holds their running average |
| `ema.safetensors` | the state of that average |
"""

import json
from pathlib import Path
from typing import NamedTuple

from grr_coca.checkpoint import Checkpoint, load_tensors, save_tensors, write_files
from grr_coca.checkpoint_files import read_json
from grr_coca.structure import from_dict, to_dict
from grr_coca.train.run.data_state import DataState
from grr_coca.train.run.numerics import Numerics
from grr_coca.train.run.progress import Progress
from grr_coca.train.step.trainer import Trainer
from grr_coca.train.survival.state import lay_out, load_optimizers, optimizer_tensors, whole_tensors
from grr_coca.train.survival.store import CheckpointStore

FOLDER = "training"


class Fixed(NamedTuple):
    """What a run decides and finds when it begins, and is held to when it goes on."""

    numerics: Numerics
    data: DataState


def save(store: CheckpointStore, checkpoint: Checkpoint, trainer: Trainer, progress: Progress, fixed: Fixed) -> None:
    """Write everything that is needed to use the model and to continue training it. Every rank must call this.

    Raises:
        DiskError: the disk is full or cannot be written to. It is raised on every rank.
    """
    raw, ranks = trainer.model.raw, trainer.model.ranks
    with trainer.averaged():
        weights = whole_tensors(raw.state_dict().items(), ranks)
    training = {"optimizer": whole_tensors(optimizer_tensors(raw, trainer.optimizers.optimizers), ranks)}
    if trainer.ema is not None:
        training["weights"] = whole_tensors(raw.state_dict().items(), ranks)
        training["ema"] = whole_tensors(trainer.ema.state_dict().items(), ranks)

    def fill(folder: Path) -> None:
        write_files(checkpoint, weights, folder)
        (folder / FOLDER).mkdir()
        for name, tensors in training.items():
            save_tensors(tensors, folder / FOLDER / f"{name}.safetensors")
        for name, content in (("progress", progress), *fixed._asdict().items()):
            (folder / FOLDER / f"{name}.json").write_text(json.dumps(to_dict(content)), encoding="utf-8")

    ranks.on_first(lambda: store.save(checkpoint.step, fill, progress.best_step))


def restore(point: Path, trainer: Trainer) -> Progress:
    """Load the state that `save` wrote into a trainer. Its model must already be loaded from the checkpoint.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder, raw = point / FOLDER, trainer.model.raw
    load_optimizers(raw, trainer.optimizers.optimizers, load_tensors(folder / "optimizer.safetensors"))
    if trainer.ema is not None:
        trainer.ema.load_state_dict(lay_out(load_tensors(folder / "ema.safetensors"), trainer.ema.state_dict()))
        raw.load_state_dict(lay_out(load_tensors(folder / "weights.safetensors"), raw.state_dict()))
    path = folder / "progress.json"
    return from_dict(Progress, read_json(path), str(path))


def read_numerics(point: Path) -> Numerics:
    """The precisions of the run that wrote a checkpoint.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = point / FOLDER / "numerics.json"
    return from_dict(Numerics, read_json(path), str(path))


def read_data_state(point: Path) -> DataState | None:
    """What the pairs were of the run that wrote a checkpoint; None if it did not say so.

    Raises:
        UserError: the file is damaged.
    """
    path = point / FOLDER / "data.json"
    return from_dict(DataState, read_json(path), str(path)) if path.exists() else None
