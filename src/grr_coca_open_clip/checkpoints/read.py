"""Convert open_clip's CoCa checkpoints to our format. Code in these files is never run."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from grr_coca.common.errors import UserError, first_line
from grr_coca.data.tokenizer import clip_bpe
from grr_coca.model.build import build_without_weights
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.config import CoCaConfig
from grr_coca_open_clip.checkpoints import SETTINGS, find_weights
from grr_coca_open_clip.checkpoints.architecture import Heads, infer_config
from grr_coca_open_clip.checkpoints.names import links, to_ours, to_theirs
from grr_coca_open_clip.checkpoints.settings import NO_SETTINGS, Settings, published_settings, read_settings

_PRESET = "open_clip_coca"

_ONE_HEAD = Heads(image=1, text=1, multimodal=1, pooler=1)
"""Numbers of heads that divide every width. With them, widths can be checked before the real numbers are known."""

_COCO_TUNED = (
    "open_clip's CoCa B/32, fine-tuned on COCO for captions, is no longer a zero-shot model: it classifies 0.9 % of "
    "ImageNet's images correctly, and the model before fine-tuning 63.6 %"
)


def read_open_clip(path: Path, model: str | None = None, device: str | torch.device = "cpu") -> Checkpoint:
    """Read an open_clip CoCa checkpoint.

    Args:
        path: Folder in the hub's layout, or a weights file. `open_clip_config.json` next to the weights defines the
            architecture. Without this file, the architecture is inferred from the shapes of the tensors; heads then
            have 64 channels, and the pooler has 8 heads, as in both published models.
        model: open_clip's name of the architecture, such as `coca_ViT-B-32`. It replaces the architecture in
            `open_clip_config.json`.
        device: Device of the model.

    Raises:
        UserError: If the checkpoint cannot be read, or our model does not support it. The message names the tensor or
            the key.
    """
    weights_path = find_weights(path)
    settings = _settings(weights_path.parent / SETTINGS, model)
    theirs = _read_weights(weights_path)
    settings.check(infer_config(theirs, _ONE_HEAD, str(weights_path)))
    config = infer_config(theirs, settings.heads, str(weights_path))
    ours = build_without_weights(config)
    _require_same_tensors(theirs, ours.state_dict(), config, weights_path)
    ours.load_state_dict(to_ours(theirs, config))
    tokenizer = clip_bpe(cleaning="ftfy")
    if tokenizer.vocab_size != config.text_decoder.vocab_size:
        raise UserError(
            f"{weights_path}: text.token_embedding.weight has {config.text_decoder.vocab_size} rows, but CLIP's "
            f"vocabulary has {tokenizer.vocab_size}; other vocabularies are not supported"
        )
    return Checkpoint(
        model=ours.to(device).eval(),
        config=config,
        preset=_PRESET,
        tokenizer=tokenizer,
        preprocess=settings.make_preprocess(config.own_image_encoder.image_size),
        step=0,
        caution=_COCO_TUNED if _is_coco_tuned(weights_path) and not _is_l14(config) else "",
    )


def _settings(path: Path, model: str | None) -> Settings:
    settings = read_settings(path) if path.exists() else NO_SETTINGS
    if model is None:
        return settings
    named = published_settings(model)
    return Settings(named.where, named.model, settings.preprocess)


def _require_same_tensors(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], config: CoCaConfig, path: Path
) -> None:
    """Check that the tensors of both models correspond one to one.

    Raises:
        UserError: If a tensor of open_clip's model is missing, has no counterpart, or has another shape.
    """
    on_meta = {name: tensor.to("meta") for name, tensor in ours.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in to_theirs(on_meta, config).items()}
    assert len(expected) == sum(len(link.theirs) for link in links(config)), "each tensor once"
    for name in expected:
        if name not in theirs:
            raise UserError(f"{path}: tensor '{name}' is missing; download the file again")
    for name, tensor in theirs.items():
        if name not in expected:
            raise UserError(f"{path}: unsupported tensor '{name}'; pass the weights of an open_clip CoCa")
        if tuple(tensor.shape) != expected[name]:
            raise UserError(
                f"{path}: tensor '{name}' has the shape {tuple(tensor.shape)}, but the other tensors imply "
                f"{expected[name]}; pass the weights of an open_clip CoCa"
            )


def _is_l14(config: CoCaConfig) -> bool:
    """Return whether the model is L/14, which classifies 72.1 % of ImageNet correctly even if it was fine-tuned on
    COCO.
    """
    return config.own_image_encoder.transformer.num_layers == 24


def _is_coco_tuned(weights: Path) -> bool:
    """Return whether the name of the file or its folder is that of a published checkpoint fine-tuned on COCO.

    The weights do not reveal the fine-tuning.
    """
    folder = weights.absolute().parent
    # in the hub's cache, the folder is models--OWNER--NAME/snapshots/REVISION
    in_cache = folder.parent.name == "snapshots"
    named = (weights, folder, folder.parent.parent) if in_cache else (weights, folder)
    return any("coco_finetuned" in path.name.lower() for path in named)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in fp32, under open_clip's names.

    If the file is a training checkpoint, its `state_dict` is used. Prefixes `module.` are removed.

    Raises:
        UserError: If the file is corrupt, truncated, or contains anything but tensors.
    """
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    state = found.get("state_dict", found)
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: contains no tensors; pass a file of weights")
    strange = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(
            f"{path}: '{strange[0]}' is not a tensor, so these are not the weights of a model; pass a file of weights"
        )
    sparse = [str(name) for name, value in state.items() if not _is_dense(value)]
    if sparse:
        raise UserError(
            f"{path}: '{sparse[0]}' is sparse or expanded, unlike the weights of a model; pass a file of weights"
        )
    named = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    if len(named) < len(state):
        raise UserError(f"{path}: duplicate tensors, with and without the prefix 'module.'; remove one of each")
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in named.items()}
    if "logit_scale" in tensors and tensors["logit_scale"].numel() == 1:
        tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    return tensors


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is dense.

    A few bytes of a sparse or expanded tensor may represent any amount of memory.
    """
    if tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _read_safetensors(path: Path) -> Mapping[str, object]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: corrupt, or its download was truncated ({error}); download it again") from error


def _read_pickled(path: Path) -> Mapping[str, object]:
    try:
        # Only tensors and plain containers are created, whatever the file requests.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except pickle.UnpicklingError as error:  # the text of the error suggests running the file's code
        raise UserError(
            f"{path}: rejected, because it contains objects other than tensors, or no weights; none of its code was "
            "run; pass a safetensors file"
        ) from error
    except Exception as error:  # corrupt bytes can raise any exception
        raise UserError(
            f"{path}: corrupt, or its download was truncated ({first_line(error)}); download it again"
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: expected named tensors, got {type(found).__name__}; pass a file of weights")
    return found


def _can_be_mapped(path: Path) -> bool:
    """Return whether a file is a ZIP file, which has been PyTorch's format since 1.6 and can be mapped into memory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"
