"""Save and load checkpoints, which are folders of safetensors and JSON files, and fit them to other sizes.

| file | content |
|---|---|
| `model.safetensors` | the weights, under the names of the modules |
| `config.json` | preset, step, the full model config, text cleaning, a warning, and the frozen encoder, if any |
| `tokenizer.json` | the tokenizer, in Hugging Face's format |
| `preprocess.json` | how images are resized and normalized |
| `manifest.json` | size and SHA-256 of each file |
| `training/` | the state that a run needs to continue; see `grr_coca.train.run_checkpoints` |
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_IMODE

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grr_coca.common.errors import UserError, count_of
from grr_coca.common.files import MANIFEST, atomic_folder, read_manifest
from grr_coca.common.torch_private import unwrap_compiled
from grr_coca.data.batch import to_input
from grr_coca.model.build import build_without_weights
from grr_coca.model.checkpoint_files import (
    FILES,
    WEIGHTS,
    CheckpointFiles,
    find_checkpoint,
    read_files,
    require_matching_files,
    write_other_files,
)
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointFiles):
    """Model in PyTorch, with everything needed to use it.

    Attributes:
        model: The model, whose parts are those of `config`.
    """

    model: CoCa

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
        """Return the token ids of texts, on the model's device, and the length of each row, on the CPU.

        Rows are padded to the length of the longest row (T tokens). Texts longer than the model's context are
        truncated.
        """
        context_length = self.config.text_decoder.context_length
        token_ids, lengths = self.tokenizer.encode_rows(texts, context_length)
        return torch.from_numpy(token_ids).to(self.model.device), torch.from_numpy(lengths)

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 S S"]:
        """Return the model input for an RGB image of any size, on the CPU.

        The image is made square, resized and normalized as `preprocess` specifies. S is the image size in pixels.
        """
        return to_input(image, self.preprocess)


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write a checkpoint to a folder atomically, for example at the end of a custom training loop.

    A checkpoint that is already in the folder is replaced. If the model comes from `torch.compile`, the original module
    is written.

    Raises:
        UserError: If the path is a file, the folder contains anything but a checkpoint, the disk is full or cannot be
            written to, or the weights, the tokenizer or the preprocessing do not fit the checkpoint's config.
    """
    folder = Path(folder)
    _require_replaceable(folder)
    require_matching_files(checkpoint, folder)
    model = unwrap_compiled(checkpoint.model)
    weights = model.state_dict()
    _require_model_of(checkpoint.config, model)
    try:
        with atomic_folder(folder) as partial:
            write_files(checkpoint, weights, partial)
    except OSError as error:
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({error.strerror or error}); free some space, or pass another "
            "folder"
        ) from error


def _require_model_of(config: CoCaConfig, model: nn.Module) -> None:
    """Check that a model matches its config. If it did not, its weights could not be loaded, or would define another
    model.

    RoPE's tables are also compared. They are not saved, and no weight reveals the grid of patches for which the model
    was trained, so later only the manifest could reveal a wrong `image_size`.

    Raises:
        UserError: If a weight or table is missing, unexpected or of another shape.
    """
    expected, found = _shapes(build_without_weights(config)), _shapes(model)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            shape, of_config = found.get(name, "missing"), expected.get(name, "nothing")
            raise UserError(
                f"the model's {name} is {shape}, but its config expects {of_config}; nothing was written; save the "
                "model with the config from which it was built"
            )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters and buffers, whether they are saved or not."""
    return {name: tuple(tensor.shape) for name, tensor in (*model.state_dict().items(), *model.named_buffers())}


def _require_replaceable(folder: Path) -> None:
    """Check that a folder contains only a checkpoint, because saving deletes the previous content of the folder.

    Raises:
        UserError: If the folder contains other files, or the path is a file.
    """
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"{folder}: expected a checkpoint folder, found a file; pass another path")
        return
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    if not found:
        return
    try:
        listed = read_manifest(folder)
    except UserError:
        listed = {}
    known = {MANIFEST, *listed} if listed.keys() >= set(FILES) else set()
    strange = next((name for name in found if name not in known), None)
    if strange is not None:
        raise UserError(
            f"{folder}: contains {strange}, which is not part of a checkpoint and would be deleted; pass a new folder, "
            "or delete this folder first"
        )


def write_files(checkpoint: Checkpoint, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the files of a checkpoint to an empty folder, such as the one that `atomic_folder` yields.

    Args:
        checkpoint: The checkpoint. Its own weights are not written.
        weights: Full tensors to write, by name. They differ from the tensors of `checkpoint.model` if the model is
            sharded, or if a running average is saved.
        folder: Folder to write to.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    save_tensors(weights, folder / WEIGHTS)
    write_other_files(checkpoint, folder)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, with permissions according to the umask.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
        path.chmod(S_IMODE(mode))  # safetensors replaces the file by one that only the owner can read
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: If the file is missing, cannot be read, or is corrupt.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except SafetensorError as error:
        raise UserError(f"{path}: corrupt, or not a safetensors file ({error}); copy it again") from error


def from_pretrained(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a checkpoint from its folder, or from a run folder (see `find_model`), with the model in evaluation mode.

    Args:
        path: The folder.
        device: Device of the model.

    Raises:
        UserError: If no checkpoint exists, a file is missing or corrupt, or the weights do not fit the config or into
            memory.
    """
    folder = find_checkpoint(Path(path))
    return with_weights(read_files(folder), folder, device)


def with_weights(files: CheckpointFiles, folder: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Load the weights of a checkpoint whose other files have already been read. The model is in evaluation mode.

    Args:
        files: All files of the checkpoint except the weights.
        folder: Folder of the checkpoint.
        device: Device of the model.

    Raises:
        UserError: If the weights are missing or corrupt, do not fit the config, or do not fit into memory.
    """
    _require_enough_bytes(files.config, folder / WEIGHTS)
    try:
        model = build_without_weights(files.config)
    except (MemoryError, RuntimeError) as error:  # PyTorch raises RuntimeError
        cause = str(error).split("\n", 1)[0]
        raise UserError(
            f"{folder}: a model with the sizes in config.json does not fit into memory ({cause}); use a "
            "machine with more memory"
        ) from error
    _load_weights(model, folder / WEIGHTS)
    return Checkpoint(model=model.to(device).eval(), **vars(files))


def _require_enough_bytes(config: CoCaConfig, path: Path) -> None:
    """Check that a weights file is large enough for the model that a config defines.

    Without this check, building a model that is far too large could fill the memory. A missing or corrupt file is
    reported later, unless the file is also too small.

    Raises:
        UserError: If the file is too small.
    """
    least = sum(transformer.min_parameters for transformer in config.transformers)
    if path.is_file() and least > path.stat().st_size:
        load_tensors(path)
        raise UserError(
            f"{path}: the weights do not match the model in config.json, which has at least {least:,} parameters; "
            f"the file has only {path.stat().st_size:,} bytes; copy both files from one checkpoint"
        )


def _load_weights(model: CoCa, path: Path) -> None:
    weights = load_tensors(path)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: the weights do not match the model in config.json: {count_of(len(wrong), 'wrong tensor')}, such "
            f"as '{name}' (expected {expected.get(name, 'none')}, found {found.get(name, 'none')}); "
            "copy both files from one checkpoint"
        )
    model.load_state_dict(weights)


# --- Other sizes of images and longer captions, for fine-tuning
#
# Shapes: P patches, D width, T positions of tokens.

_PATCHES, _TOKENS = "image_encoder.position.embedding", "text_decoder.position.embedding"


def resize_checkpoint(
    checkpoint: Checkpoint, image_size: int | None = None, context_length: int | None = None
) -> Checkpoint:
    """Convert a checkpoint to images of another size and captions of another length.

    RoPE's tables, which are not weights, are computed for the new grid and the new context. Learned patch positions are
    interpolated (bicubic, as for ViT, arXiv 2010.11929). Learned token positions are kept, and new positions are copies
    of the last position, so captions that fitted before keep their embeddings and probabilities.

    Args:
        checkpoint: Checkpoint to start from. It is not changed.
        image_size: New image size in pixels. None keeps the present size.
        context_length: New maximum number of tokens in a caption. None keeps the present maximum.

    Returns:
        The new checkpoint, or the given checkpoint if it already has these sizes.

    Raises:
        UserError: If the size is not a multiple of the patch size, the new context is shorter than the old context, or
            the model has no image encoder.
    """
    config = checkpoint.config
    image, text = config.own_image_encoder, config.text_decoder
    image_size, context_length = image_size or image.image_size, context_length or text.context_length
    if (image_size, context_length) == (image.image_size, text.context_length):
        return checkpoint
    if context_length < text.context_length:
        raise UserError(
            f"context_length must be at least {text.context_length}, as in the checkpoint, because a context can only "
            f"be lengthened, got {context_length}"
        )
    config = replace(
        config,
        image_encoder=replace(image, image_size=image_size),
        text_decoder=replace(text, context_length=context_length),
    )
    model, weights = build_without_weights(config), dict(checkpoint.model.state_dict())
    if _PATCHES in weights:
        weights[_PATCHES] = _interpolate(weights[_PATCHES], config.own_image_encoder.grid_size)
    if _TOKENS in weights:
        weights[_TOKENS] = _extend(weights[_TOKENS], context_length)
    model.load_state_dict(weights)
    model = model.to(checkpoint.model.device).train(checkpoint.model.training)
    preprocess = replace(checkpoint.preprocess, image_size=image_size)
    return replace(checkpoint, config=config, model=model, preprocess=preprocess)


def _interpolate(positions: Float[Tensor, "P D"], grid_size: int) -> Float[Tensor, "Q D"]:
    """Interpolate the learned positions of patches in a square grid to another grid size."""
    old = math.isqrt(len(positions))
    if old == grid_size:
        return positions
    grid = positions.unflatten(0, (old, old)).permute(2, 0, 1)[None].float()  # 1 D h w
    grid = F.interpolate(grid, (grid_size, grid_size), mode="bicubic", antialias=True)
    return grid[0].flatten(1).T.contiguous().type_as(positions)


def _extend(positions: Float[Tensor, "T D"], context_length: int) -> Float[Tensor, "U D"]:
    """Extend the learned positions of tokens to a longer context.

    The new positions are copies of the last position. It thus stays last, because it belongs to open_clip's [CLS].
    """
    return torch.cat([positions, positions[-1:].expand(context_length - len(positions), -1)])
