"""Read all of a checkpoint but its weights: config, tokenizer and preprocessing. This needs no PyTorch.

`grr_coca.model.checkpoint` adds the weights as a PyTorch model, `grr_coca.infer.engine` as ONNX graphs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST, listed_files, models_cache, read_json, verify_folder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import Cleaning, Tokenizer
from grr_coca.model.checkpoint_folder import MODEL_FILES, read_config, saved_config
from grr_coca.model.config import CoCaConfig


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """All that is needed to use a model, except its weights.

    `caution`: why its embeddings may be unfit for search and zero-shot classification; empty if no reason is known.
    """

    config: CoCaConfig
    preset: str
    tokenizer: Tokenizer
    preprocess: Preprocess
    step: int
    caution: str = ""


@dataclass(frozen=True)
class _Header:
    """The content of `config.json`."""

    preset: str
    step: int
    model: dict[str, object]
    text_cleaning: Cleaning = "none"
    caution: str = ""


def read_files(folder: Path) -> CheckpointFiles:
    """Read a checkpoint folder, or a folder of ONNX graphs. Its files are compared with its manifest, if it has one.

    Raises:
        UserError: a file is missing or damaged, or the files do not fit one another.
    """
    if (folder / MANIFEST).exists():  # a checkpoint that was put together by hand may have none
        _verify(folder)
    header = from_dict(_Header, read_json(folder / "config.json"), str(folder / "config.json"))
    config = read_config(header.model, f"{folder / 'config.json'}: model")
    files = CheckpointFiles(
        config=config,
        preset=header.preset,
        tokenizer=_read_tokenizer(folder / "tokenizer.json", header.text_cleaning),
        preprocess=from_dict(Preprocess, read_json(folder / "preprocess.json"), str(folder / "preprocess.json")),
        step=header.step,
        caution=header.caution,
    )
    require_fitting(files, folder)
    return files


def require_fitting(files: CheckpointFiles, folder: Path) -> None:
    """Raise an error if the tokenizer or the preprocessing does not fit the config. `folder` names them in messages.

    Raises:
        UserError: one does not fit.
    """
    known, side = files.config.text_decoder.vocab_size, files.config.image_encoder.image_size
    largest_id, image_size = files.tokenizer.largest_id, files.preprocess.image_size
    if largest_id >= known:
        path = folder / "tokenizer.json"
        raise UserError(f"{path}: has the id {largest_id:,}, but the ids of the model are below {known:,}")
    if image_size != side:
        path = folder / "preprocess.json"
        raise UserError(f"{path}: image_size is {image_size}, but the model takes images of {side} pixels")


def write_beside_weights(files: CheckpointFiles, folder: Path) -> None:
    """Write config, tokenizer and preprocessing into a folder.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    header = _Header(files.preset, files.step, saved_config(files.config), files.tokenizer.cleaning, files.caution)
    (folder / "config.json").write_bytes(json.dumps(to_dict(header), indent=2).encode())
    (folder / "tokenizer.json").write_bytes(files.tokenizer.to_json().encode())
    preprocess = to_dict(files.preprocess)
    if files.preprocess.framing is None:  # older files do not have the key, and must keep their hash
        del preprocess["framing"]
    (folder / "preprocess.json").write_bytes(json.dumps(preprocess, indent=2).encode())


def _verify(folder: Path) -> None:
    # A download has only the files of the model, though the manifest may list those of a run or a card, too.
    is_download = not any((folder / name).exists() for name in listed_files(folder).keys() - set(MODEL_FILES))
    try:
        verify_folder(folder, MODEL_FILES if is_download else None)
    except UserError as error:
        if folder.parent == models_cache():
            raise UserError(f"{error}; delete {folder}, and it is imported again") from error
        raise


def _read_tokenizer(path: Path, cleaning: Cleaning) -> Tokenizer:
    try:
        return Tokenizer.from_json(path.read_text(encoding="utf-8"), cleaning)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the tokenizer is damaged ({error})") from error
