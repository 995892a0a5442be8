"""Write, remove, find and read the checkpoints of a run, so that a stopped run continues with identical results.

A checkpoint is a model (`grr_coca.model.checkpoint`) with a folder `training`, which contains the state of the run:

| file | content |
|---|---|
| `progress.json` | the counters, see `Progress` |
| `numerics.json` | the precisions chosen at the start of the run, see `Numerics` |
| `data.json` | number and names of the run's pairs, see `DataState`; older checkpoints have none |
| `loss_scale.json` | the factor of the loss in fp16, see `LossScale` |
| `optimizer.safetensors` | the optimizers' state, by parameter |
| `weights.safetensors` | the weights, if `model.safetensors` contains their running average |
| `ema.safetensors` | the state of that average |

The state depends neither on the number of ranks that wrote it nor on whether they sharded the model: every tensor in
the state is unsharded, under the name of its parameter, so a model must fit into the memory of one machine.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from grr_coca.common.dict_to_dataclass import differences, from_dict, to_dict
from grr_coca.common.errors import DiskError, UserError
from grr_coca.common.files import atomic_folder, read_json, verify_folder, write_bytes_atomic
from grr_coca.common.ranks import Ranks
from grr_coca.model.checkpoint import Checkpoint, load_tensors, save_tensors, write_files
from grr_coca.model.checkpoint_files import BEST_FILE, START_FILE, checkpoints_by_step, fingerprint
from grr_coca.train.logs import Progress
from grr_coca.train.parallel import shard_like, unshard
from grr_coca.train.recipe import Recipe, load_recipe
from grr_coca.train.setup import DataState
from grr_coca.train.step import LossScale, Numerics, Trainer

log = logging.getLogger(__name__)

STATE_FOLDER = "training"

# --- Start of a run


@dataclass(frozen=True)
class Origin:
    """Start checkpoint of a fine-tuning run: its folder, and the `fingerprint` of its files.

    A resumed run takes its weights from the run's checkpoints, so a different start can be detected only with this
    record.
    """

    checkpoint: str
    fingerprint: str


def origin_of(checkpoint: Path) -> Origin:
    """Return the origin of a run that starts from a checkpoint.

    Raises:
        UserError: If a file cannot be read, or its manifest is corrupt.
    """
    return Origin(str(checkpoint.absolute()), fingerprint(checkpoint))


def save_origin(origin: Origin, out: Path) -> None:
    """Write the origin of a run to its folder.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    write_bytes_atomic(out / START_FILE, json.dumps(to_dict(origin), indent=2).encode())


def _require_same_origin(origin: Origin, out: Path) -> None:
    """Check that the run in a folder started from the same checkpoint. Runs without an origin file pass.

    Raises:
        UserError: If the run started from another checkpoint, or its origin file is corrupt.
    """
    path = out / START_FILE
    if not path.exists():
        return
    before = from_dict(Origin, read_json(path), str(path))
    if before.fingerprint != origin.fingerprint:
        raise UserError(
            f"{path}: this run started from {before.checkpoint}, whose files differ from those of {origin.checkpoint}; "
            f"to continue that run, pass the same --checkpoint, or, if that checkpoint no longer exists, delete "
            f"{START_FILE}; to start another run, pass another --out"
        )


# --- State as unsharded tensors by name


def unsharded_tensors(named: Iterable[tuple[str, Tensor]], ranks: Ranks) -> dict[str, Tensor]:
    """Return unsharded copies of tensors on the CPU of rank 0.

    On all other ranks, the result is empty, but all ranks must call this function.
    """
    copies = {}
    for name, tensor in named:
        gathered = unshard(tensor)
        if ranks.is_first:
            copies[name] = gathered.detach().to("cpu", copy=True).contiguous()
    return copies


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[tuple[str, Tensor]]:
    """Return the state of the optimizers, named `PARAMETER.STATE`, such as `text_proj.weight.exp_avg`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return [
        (f"{names[parameter]}.{key}", value)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    ]


def _shard_like_examples(tensors: Mapping[str, Tensor], examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shard each unsharded tensor like the example with the same name."""
    return {name: shard_like(examples[name], tensor) for name, tensor in tensors.items()}


def _load_optimizers(model: nn.Module, optimizers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Load the state of the optimizers from unsharded tensors, named as in `_optimizer_tensors`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition(".")
        by_parameter.setdefault(parameter_name, {})[key] = tensor
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            i: {key: shard_like(parameter, tensor) for key, tensor in by_parameter[names[parameter]].items()}
            for i, parameter in enumerate(parameters)
            if names[parameter] in by_parameter
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# --- Checkpoint folder


class CheckpointStore:
    """Folder `checkpoints` of a run, which contains one folder `step-N` per checkpoint.

    Args:
        folder: The folder, which need not exist.
        keep_last: Number of the newest checkpoints that `save` keeps.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self._keep_last = keep_last

    def save(self, step: int, fill: Callable[[Path], None], best_step: int | None) -> None:
        """Write a checkpoint atomically, then remove obsolete checkpoints.

        Args:
            step: Step of the checkpoint.
            fill: Function that writes the files of the checkpoint to a given folder.
            best_step: Step of the best checkpoint, which is recorded and kept. None if no best checkpoint is kept.

        Raises:
            DiskError: If the disk is full or cannot be written to. Earlier checkpoints are kept.
        """
        folder = self.folder / f"step-{step:09d}"
        try:
            with atomic_folder(folder) as partial:
                fill(partial)
            if best_step is not None:
                write_bytes_atomic(self.folder / BEST_FILE, f'{{"step": {best_step}}}\n'.encode())
            self._remove_obsolete(step, best_step)
        except OSError as error:
            raise DiskError(f"{folder}: the checkpoint cannot be written ({error.strerror or error})") from error

    def newest(self) -> Path | None:
        """Return the newest checkpoint whose files match their manifest, or None if there is none.

        Corrupt checkpoints are skipped with a warning.

        Raises:
            UserError: If the folder exists but cannot be listed.
        """
        for folder in reversed(checkpoints_by_step(self.folder).values()):
            try:
                verify_folder(folder)
            except UserError as error:
                log.warning("%s; trying an earlier checkpoint", error)
            else:
                return folder
        return None

    def _remove_obsolete(self, step: int, best_step: int | None) -> None:
        """Remove old checkpoints, checkpoints of later steps than `step`, and what interrupted processes have left.

        If a run was resumed from a step before a corrupt checkpoint, the corrupt checkpoint would otherwise count as
        one of the newest.
        """
        folders = checkpoints_by_step(self.folder)
        kept = {*sorted(number for number in folders if number <= step)[-self._keep_last :], best_step}
        for number, folder in folders.items():
            if number not in kept:
                # renamed first, because a partly removed checkpoint must not look complete
                folder.rename(folder.with_name(f".{folder.name}.old"))
        for leftover in self.folder.glob(".*"):  # left by this save, or by a killed process
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


class RunConstants(NamedTuple):
    """Precisions and data of a run, which are fixed when the run starts. A resumed run must have the same precisions
    and data.
    """

    numerics: Numerics
    data: DataState


def save(
    store: CheckpointStore, checkpoint: Checkpoint, trainer: Trainer, progress: Progress, constants: RunConstants
) -> None:
    """Write a checkpoint with the model and all state that is needed to continue training. Every rank must call this.

    Raises:
        DiskError: If the disk is full or cannot be written to. The error is raised on every rank.
    """
    raw, ranks = trainer.model.raw, trainer.model.ranks
    with trainer.averaged():
        weights = unsharded_tensors(raw.state_dict().items(), ranks)
    training = {"optimizer": unsharded_tensors(_optimizer_tensors(raw, trainer.optimizers.optimizers), ranks)}
    if trainer.ema is not None:
        training["weights"] = unsharded_tensors(raw.state_dict().items(), ranks)
        training["ema"] = unsharded_tensors(trainer.ema.state_dict().items(), ranks)

    def fill(folder: Path) -> None:
        write_files(checkpoint, weights, folder)
        (folder / STATE_FOLDER).mkdir()
        for name, tensors in training.items():
            save_tensors(tensors, folder / STATE_FOLDER / f"{name}.safetensors")
        state = {"progress": progress, **constants._asdict()}
        if trainer.loss_scale is not None:
            state["loss_scale"] = trainer.loss_scale
        for name, content in state.items():
            (folder / STATE_FOLDER / f"{name}.json").write_bytes(json.dumps(to_dict(content)).encode())

    ranks.run_on_first(lambda: store.save(checkpoint.step, fill, progress.best_step))


def restore(point: Path, trainer: Trainer) -> Progress:
    """Restore a trainer, in place, from the state that `save` wrote, and return the progress of the run.

    The trainer's model must already be loaded from the checkpoint.

    Raises:
        UserError: If a file is missing or corrupt.
    """
    folder, raw = point / STATE_FOLDER, trainer.model.raw
    _load_optimizers(raw, trainer.optimizers.optimizers, load_tensors(folder / "optimizer.safetensors"))
    if trainer.ema is not None:
        trainer.ema.load_state_dict(
            _shard_like_examples(load_tensors(folder / "ema.safetensors"), trainer.ema.state_dict())
        )
        raw.load_state_dict(_shard_like_examples(load_tensors(folder / "weights.safetensors"), raw.state_dict()))
    if trainer.loss_scale is not None:
        path = folder / "loss_scale.json"
        saved = from_dict(LossScale, read_json(path), str(path))
        trainer.loss_scale.factor, trainer.loss_scale.finite_steps = saved.factor, saved.finite_steps
    path = folder / "progress.json"
    return from_dict(Progress, read_json(path), str(path))


def read_data_state(point: Path) -> DataState | None:
    """Return the data state of the run that wrote a checkpoint, or None if the checkpoint is older and has no data
    state.

    Raises:
        UserError: If the file is corrupt.
    """
    path = point / STATE_FOLDER / "data.json"
    return from_dict(DataState, read_json(path), str(path)) if path.exists() else None


# --- Resuming

FREE_KEYS = (
    "data.num_workers",
    "data.micro_batch_size",
    "data.test",
    "parallelism",
    "checkpoints.interval",
    "checkpoints.minutes",
    "checkpoints.keep_last",
    "checkpoints.copy_to",
    "health",
)
"""Recipe keys that may change in a resumed run, because they do not change what the model learns."""


class NoReadableCheckpointError(UserError):
    """Error of a run that has checkpoints, none of which can be read."""


def resume_point(out: Path, recipe: Recipe, origin: Origin | None = None) -> Path | None:
    """Return the newest intact checkpoint of a run folder, or None if the run has no checkpoint yet.

    Corrupt checkpoints are skipped with a warning.

    Args:
        out: Run folder.
        recipe: Recipe of the run.
        origin: Start checkpoint of the run. If None, the start checkpoints are not compared.

    Raises:
        NoReadableCheckpointError: If checkpoints exist, but all of them are corrupt or cannot be read.
        UserError: If the folder contains a run with another recipe (the message names the first key that differs), or
            from another `origin`.
    """
    folder = out / "checkpoints"
    point = CheckpointStore(folder, keep_last=1).newest()
    if point is None:
        # A new run would remove these checkpoints at its first save, although the disk may be unavailable only briefly.
        if damaged := checkpoints_by_step(folder):
            raise NoReadableCheckpointError(
                f"{folder}: none of its checkpoints can be read ({len(damaged)} found, see the warnings); "
                "if the disk was unavailable, run the same command again; to restart this run, delete the folder"
            )
        return None
    path = out / "recipe.yaml"
    for key, expected, found in differences(with_numerics_of(recipe, point), load_recipe(path)):
        if not key.startswith(FREE_KEYS):
            raise UserError(
                f"{path}: this run has {key} {found}, not {expected}; to continue this run, pass the same recipe; "
                "to start another run, pass another --out"
            )
    if origin is not None:
        _require_same_origin(origin, out)
    return point


def with_numerics_of(recipe: Recipe, point: Path) -> Recipe:
    """Replace each `auto` in a recipe by the precision of the run that wrote a checkpoint.

    Raises:
        UserError: If the checkpoint's `numerics.json` is missing or corrupt.
    """
    path = point / STATE_FOLDER / "numerics.json"
    return from_dict(Numerics, read_json(path), str(path)).resolve_autos(recipe)
