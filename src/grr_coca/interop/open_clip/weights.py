"""Tensors from the files that open_clip's checkpoints come in. Nothing of a file is ever executed."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from grr_coca.errors import UserError


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors in fp32 by open_clip's names, whatever they are wrapped in.

    A `state_dict` among a training's other things, `module.` before names and another floating-point type make no
    difference.

    Raises:
        UserError: the file is damaged, cut off, or holds anything but tensors.
    """
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    state = found.get("state_dict", found)
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: no tensors in it")
    strange = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{path}: '{strange[0]}' is no tensor, so these are not the weights of a model")
    thin = [str(name) for name, value in state.items() if not _is_written_out(value)]
    if thin:
        raise UserError(f"{path}: '{thin[0]}' holds fewer numbers than its shape says, as no weights of a model do")
    named = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    if len(named) < len(state):
        raise UserError(f"{path}: tensors are there twice, with and without 'module.' before their names")
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in named.items()}
    if "logit_scale" in tensors and tensors["logit_scale"].numel() == 1:
        tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    return tensors


def _is_written_out(tensor: Tensor) -> bool:
    """False for a tensor that repeats its numbers or leaves zeros out: a few bytes may stand for any amount."""
    if tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _read_safetensors(path: Path) -> Mapping[str, object]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged, or its download was cut off ({error})") from error


def _read_pickled(path: Path) -> Mapping[str, object]:
    try:
        # Only tensors and plain containers are made, whatever the file asks for.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except pickle.UnpicklingError as error:  # its text advises to run whatever the file holds
        raise UserError(
            f"{path}: refused: it asks for more than tensors to be made, or holds no weights; nothing of it was run"
        ) from error
    except Exception as error:  # damaged bytes end the reader in any way
        raise UserError(f"{path}: damaged, or its download was cut off ({_first_line(error)})") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: holds {type(found).__name__}, not tensors by name")
    return found


def _can_be_mapped(path: Path) -> bool:
    """A zip file, as PyTorch writes since 1.6; older ones are read whole."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
